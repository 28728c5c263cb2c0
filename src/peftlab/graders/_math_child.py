"""The process that compares mathematical expressions: one JSON object a line in, one out, until its input ends.

It is started by `_math_verifier.py`. Reading LaTeX and simplifying may take for ever or all memory, so that both are
limited here: processor time by a timer whose signal ends the process, memory by the system's own limit. What it is
given was written by a model: nothing of it is evaluated as code. math-verify hands Python's parser only what consists
of digits and operators; everything else goes through a grammar of LaTeX.
"""

from __future__ import annotations

import json
import logging
import math
import re
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

MEMORY = 2 * 2**30
_NO_EXPRESSION = re.compile(r"[$%]|\\f?boxed|\\fbox")
_SYMPY_FAILS_WITH = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def _read(text: str, *, whole: bool) -> list[Any]:
    """What math-verify reads in an answer, or (whole) finds in a text without a declared one."""
    from math_verify import LatexExtractionConfig, parse

    if whole:
        return list(parse(text, parsing_timeout=None))
    return list(parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None))


def verify(gold: str, answer: str, whole: bool) -> dict[str, Any]:
    """math-verify's own verdict with its own defaults; `answer` is what was compared, as text."""
    from math_verify import verify as equal

    found = _read(answer, whole=whole)
    texts = [one for one in found if isinstance(one, str)]
    return {
        "equal": bool(equal(_read(gold, whole=False), found, timeout_seconds=None)),
        "answer": texts[-1] if texts else None,
    }


def _expression(text: str) -> Any:
    """All of the text as an expression, its letters as factors; None where the grammar has no place for some of it.

    Without math-verify's tolerance, which drops dollar signs, boxes and units, and reads percentages.
    """
    from math_verify import LatexExtractionConfig, parse
    from math_verify.parser import NormalizationConfig

    if _NO_EXPRESSION.search(text):
        return None
    as_written = LatexExtractionConfig(normalization_config=NormalizationConfig(basic_latex=False, boxed="none"))
    found = parse(f"\\boxed{{{text}}}", [as_written], fallback_mode="no_fallback", parsing_timeout=None)
    return next((one for one in found if not isinstance(one, str)), None)


def symbolic(left: str, right: str) -> dict[str, Any]:
    """Whether the difference of two expressions simplifies to 0, or their values agree to one part in a thousand."""
    import sympy

    values = [_expression(text) for text in (left, right)]
    if None in values:
        return {"equal": False}
    for agree in (
        lambda a, b: sympy.simplify(a - b) == 0,
        lambda a, b: math.isclose(sympy.N(a), sympy.N(b), rel_tol=1e-3),
    ):
        try:
            if agree(*values):
                return {"equal": True}
        except _SYMPY_FAILS_WITH:  # no numbers, no common type, an unsolved form: then it shows no equality
            continue
    return {"equal": False}


QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {"verify": verify, "symbolic": symbolic}


def main() -> None:
    """Answer requests until the input ends."""
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import math_verify  # noqa: F401 - before the first timer

    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        seconds = request.pop("seconds")
        signal.setitimer(signal.ITIMER_PROF, seconds)  # counts this process's own time: the same on a busy machine
        answer = QUESTIONS[request.pop("ask")](**request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
