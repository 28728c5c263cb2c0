"""A row of CommonsenseQA with its options by letter: see `_llm_adapters.lettered`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.errors import UserError
from peftlab.tasks._llm_adapters import lettered

LETTERS = ("A", "B", "C", "D", "E")


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """`a` to `e` are the options, `letters` what is chosen from."""
    found = lettered(row)
    if len(found["choices"]) != len(LETTERS):
        raise UserError(f"no row with five choices: {str(dict(row))[:200]}", fix="is this CommonsenseQA?")
    named = dict(zip(("a", "b", "c", "d", "e"), found["choices"], strict=True))
    return {**found, **named, "letters": list(LETTERS)}
