"""A row of CodeFeedback-Filtered-Instruction, which names its columns otherwise, or of HumanEval (`_code.either`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.tasks._code import either


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row behind the Alpaca prompt without an input, which its response follows without a space."""
    return either({"instruction": row["query"], "output": row["answer"]} if "query" in row else row)
