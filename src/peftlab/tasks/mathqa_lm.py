"""A MathQA row with the text of its right option as `answer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.tasks._math_qa import options


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """`options` and the letter `correct` to `answer`."""
    return {**row, "answer": options(row)[row["correct"]]}
