"""A SciQ row with its four answers as `choices`: the right one stands where a digest of the question says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.digest import digest


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """`correct_answer` and `distractor1` to `distractor3` to `choices` and the index `answer`."""
    choices = [row[f"distractor{number}"] for number in (1, 2, 3)]
    place = int(digest(row["question"])[:8], 16) % (len(choices) + 1)
    choices.insert(place, row["correct_answer"])
    return {"support": row["support"].lstrip(), "question": row["question"], "choices": choices, "answer": place}
