"""AQuA-RAT's own rows in the words of LLM-Adapters, whose rows pass through: the options end the question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """`question`, `options` (`A)21`), `rationale` and `correct` to `instruction`, `work` and `answer`."""
    if "options" not in row:
        return {**row, "work": ""}
    options = " ".join(
        f"({letter}) {text.strip()}" for letter, _, text in (one.partition(")") for one in row["options"])
    )
    return {
        "instruction": f"{row['question'].strip()} Answer Choices: {options}",
        "work": f"{row['rationale'].strip()}\n",
        "answer": row["correct"],
    }
