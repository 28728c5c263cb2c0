"""The options of a MathQA row, which are one text: `a ) 38 , b ) 27.675 , ...`, or a list written as Python would.

A comma does not divide options (`1,000` has one, and so have pairs of numbers); the next letter with its bracket does.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from peftlab.errors import UserError

LETTERS = "abcde"

_WHOLE = re.compile(r"a \)(.*?), b \)(.*?), c \)(.*?), d \)(.*?), e \)(.*)", re.DOTALL)


def options(row: Mapping[str, Any]) -> dict[str, str]:
    """The text of each option, by its letter.

    Raises:
        UserError: They are not five options, one of them the right one.
    """
    text = str(row["options"])
    if text.startswith("["):
        try:
            text = " , ".join(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError):
            text = ""
    found = _WHOLE.fullmatch(text.strip())
    if found is None or row["correct"] not in tuple(LETTERS):
        raise UserError(
            f"no row of five options: {str(dict(row))[:200]}", fix="is this a data set in the format of MathQA?"
        )
    return dict(zip(LETTERS, (option.strip() for option in found.groups()), strict=True))
