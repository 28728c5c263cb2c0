"""A MathQA row with its rationale in plain words and the text of its right option as `answer`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from peftlab.tasks._math_qa import options

_LETTER = re.compile(
    r"[\s,;.]*(?:(?:so|hence|therefore|the|final|correct)\s+)*\b(?:answer|ans|option)\b[\s:=.]*(?:is\b[\s:]*)?"
    r"(?:option\b\s*)?[(\[]?\s*[a-e]\s*[)\]]?[\s.!]*$",
    re.IGNORECASE,
)


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """`Rationale`, `options` and the letter `correct` to `rationale` and `answer`."""
    rationale = str(row["Rationale"]).strip().strip('"').strip()
    return {**row, "rationale": _LETTER.sub(" .", rationale).strip(), "answer": options(row)[row["correct"]]}
