"""A row of LLM-Adapters with a blank, as partial scoring takes it: see `_llm_adapters.blank` for its twins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.tasks._llm_adapters import blank, choices


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with the sentence `before` and `after` the blank; its `choices` are the two names alone.

    White space as in lm-evaluation-harness: none is taken off before the blank, all of it behind.
    """
    found = blank(row)
    before, _, after = found["question"].partition("_")
    return {**found, "before": before, "after": after.strip(), "choices": choices(row)["choices"]}
