"""An MMLU row to named options and letters. The list `choices` becomes a, b, c, d; the letters are what is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.errors import UserError

LETTERS = ("A", "B", "C", "D")


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """`choices` to `a`, `b`, `c`, `d` and `letters`; `subject` to the words that the prompt has for it."""
    options = row.get("choices")
    if not isinstance(options, list) or len(options) != len(LETTERS):
        raise UserError(f"no row with four choices: {str(dict(row))[:200]}", fix="is this a data set in MMLU's format?")
    subject = str(row.get("subject") or "").replace("_", " ")  # empty in auxiliary_train
    named = dict(zip(("a", "b", "c", "d"), options, strict=True))
    return {**row, **named, "letters": list(LETTERS), "about": f" about {subject}" if subject else ""}
