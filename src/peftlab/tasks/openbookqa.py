"""Take a multiple-choice row of LLM-Adapters apart: the question, the options (any number), and the answer's index.

Such a row holds one text: a fixed introduction, the question, `Answer1: ... Answer2: ...`, and the answer's format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from peftlab.errors import UserError

_INSTRUCTION = re.compile(
    r"Please choose the correct answer to the question: (?P<question>.*?)\s*"
    r"\n\n(?P<options>Answer1: .*?)\s*\n\nAnswer format: (?P<names>\w+(?:/\w+)+)\s*",
    re.DOTALL,
)


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """`instruction` and `answer` to `question`, `choices` and the index `answer`."""
    found = _INSTRUCTION.fullmatch(row["instruction"])
    names = found["names"].split("/") if found else []
    options = _options(tuple(names)).fullmatch(found["options"]) if found else None
    if found is None or options is None or row["answer"] not in names:
        raise UserError(
            f"no multiple-choice row: {str(dict(row))[:200]}", fix="is this a data set in the format of LLM-Adapters?"
        )
    choices = [option.strip() for option in options.groups()]
    return {"question": found["question"], "choices": choices, "answer": names.index(row["answer"])}


@cache
def _options(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(r"\s+".join(f"{name.capitalize()}: (.*?)" for name in names), re.DOTALL)
