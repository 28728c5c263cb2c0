"""Grades the answer of a mathematical problem: a number, an expression, a tuple, an interval, a word or a letter.

The reference is a worked solution or an answer alone: of the former, what its last declaration says (a box, `####`,
`The answer is`). Numbers alone are better graded by `numeric`, exactly and without a library.

Modes:
    math_verify: The declared answer is equal to the reference, by math-verify (the extra `math`) with its own
        defaults; also when both are the same text after `boxed`'s normalisation, so that what math-verify cannot read
        is still equal to itself. Declared is what the last `\\boxed{}` says, or without one the last `answer is`,
        `answer:` or `####`; a box that is not closed says nothing, and the answer is invalid, as is one that is denied
        (`is not 3`) or has another beside it (`$3$ or $5$`). In a text without a
        declaration, math-verify looks for the answer by its own rules. A comparison that takes more than 5 s of
        processor time, or all memory, counts as wrong; the notes say how many did (`timed_out`, `failed`).
    boxed: The last `\\boxed{}` or `\\fbox{}`, compared as the MATH benchmark does: as text, after its normalisation.
    corda: The rules of CorDA's evaluation: `_math_corda.py`.
    text: The declared answer, of which all of its line is read (without a declaration: all of the text), in lower case.
    number: The last number, commas dropped, within 0.001 of the reference: the rule of LLM-Adapters.
    letter: The first capital among A to E: the rule of LLM-Adapters, for which every `Answer` is an A.
    option: The declared letter: `answer is (C)`, `\\boxed{C}`, or a text that is a letter and nothing else.
        A letter that is denied, or has another beside it (`(B) or (C)`), is no answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftlab.errors import UserError, unknown_name
from peftlab.graders import _math_corda, _math_text, _math_verifier
from peftlab.graders._hedges import DENIED, OR, UNSURE
from peftlab.graders._math_verifier import Trouble, Verdict
from peftlab.protocols import Example, Grade, Grader, Prediction

MODES = ("math_verify", "boxed", "corda", "text", "number", "letter", "option")
_SYMBOLIC = ("math_verify", "corda")
_TOLERANCE = 0.001
_DECIMAL = re.compile(r"-?\d+\.?\d*", re.ASCII)
_OPTION = re.compile(r"\s*(?:\\text\s*)?[\[({]?\s*([A-Ea-e])(?![A-Za-z])")
_NO_OPTION = re.compile(
    rf"{DENIED}|[\])}}\s.:,;(]*{OR}[\s(]*(?:(?:or|and)\b\s*)?{UNSURE}\s*"
    r"(?:\(?(?:[A-E])(?![A-Za-z])(?!\s+(?!or\b|and\b)[a-z])|[\[({][a-e][\])}])"
)
_OPTION_ALONE = re.compile(r"\s*[\[({]?([A-Ea-e])[\])}]?[\s.:]*")


@dataclass(frozen=True, kw_only=True)
class Unverified(Grade):
    """A grade without a verdict: the comparison took too long, or the process that made it broke down."""

    trouble: Trouble


def _text(example: Example) -> str:
    reference = example.reference
    if isinstance(reference, str) or (isinstance(reference, int | float) and not isinstance(reference, bool)):
        return str(reference)
    raise _no_answer(example)


def _no_answer(example: Example) -> UserError:
    return UserError(
        f"item {example.item}: the reference {str(example.reference)[-80:]!r} holds no answer",
        fix="let the task's 'reference' name a column with the answer, or with a solution that boxes it",
    )


def _reference(example: Example) -> str:
    """The answer of a reference: what it declares (an empty box declares that there is none), else all of it."""
    text = _text(example)
    found, said = _math_text.declared(text)
    answer = said if found else text.strip() or None
    if answer is None:
        raise _no_answer(example)
    return answer


def _verified(text: str, example: Example) -> Grade:
    expected = _reference(example)
    found, answer = _math_text.declared(text)
    if not found and text.strip():
        verdict = _math_verifier.verify(expected, text, whole=True)
        return _judged(verdict, verdict.answer)
    if answer is None:
        return Grade(score=0.0, answer=None, valid=False)
    if _math_text.normalised(answer) == _math_text.normalised(expected):
        return Grade(score=1.0, answer=answer, valid=True)
    return _judged(_math_verifier.verify(expected, answer), answer)


def _boxed(text: str, example: Example) -> Grade:
    answer = _math_text.box(text)
    same = answer is not None and _math_text.normalised(answer) == _math_text.normalised(_reference(example))
    return Grade(score=float(same), answer=answer, valid=answer is not None)


def _corda(text: str, example: Example) -> Grade:
    expected = _reference(example)
    answer = _math_corda.answer(text, number="####" in _text(example))
    if answer is None:
        return Grade(score=0.0, answer=None, valid=False)
    return _judged(_math_corda.equal(answer, expected), answer)


def _judged(verdict: Verdict, answer: str | None) -> Grade:
    if verdict.trouble is not None:
        return Unverified(score=0.0, answer=answer, valid=answer is not None, trouble=verdict.trouble)
    return Grade(score=float(verdict.equal), answer=answer, valid=answer is not None)


def _as_text(text: str, example: Example) -> Grade:
    found, answer = _math_text.declared(text, line=True)
    said = _math_text.plain((answer or "") if found else text)
    return Grade(score=float(said == _math_text.plain(_reference(example))), answer=said or None, valid=bool(said))


def _number(text: str, example: Example) -> Grade:
    expected = _math_text.bare(_reference(example)).replace(",", "")
    try:
        value = float(expected)
    except ValueError:
        raise UserError(
            f"item {example.item}: the reference {expected[-80:]!r} is no number",
            fix="use a grader mode for expressions",
        ) from None
    found = _DECIMAL.findall(text.replace(",", ""))
    if not found:
        return Grade(score=0.0, answer=None, valid=False)
    return Grade(score=float(math.fabs(float(found[-1]) - value) <= _TOLERANCE), answer=found[-1], valid=True)


def _letter(text: str, example: Example) -> Grade:
    found = re.search("[A-E]", text)
    return _lettered(found[0] if found else None, example)


def _option(text: str, example: Example) -> Grade:
    found, said = _math_text.declared(text)
    match = _OPTION.match(said or "") if found else _OPTION_ALONE.fullmatch(text)
    if found and match and _NO_OPTION.match(said or "", match.end()):
        match = None
    return _lettered(match[1].upper() if match else None, example)


def _lettered(letter: str | None, example: Example) -> Grade:
    expected = _text(example).strip().upper()
    if not re.fullmatch("[A-E]", expected):
        raise UserError(
            f"item {example.item}: the reference {expected[-80:]!r} is no letter from A to E",
            fix="use a grader mode for numbers or expressions",
        )
    return Grade(score=float(letter == expected), answer=letter, valid=letter is not None)


_JUDGES = dict(zip(MODES, (_verified, _boxed, _corda, _as_text, _number, _letter, _option), strict=True))


def grade(prediction: Prediction, example: Example, mode: str) -> Grade:
    """1 when the answer read in `mode` is the reference's, else 0; invalid when none was found."""
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    return _JUDGES[mode](prediction.text or "", example)


def summary(grades: Sequence[Grade], examples: Sequence[Example]) -> Mapping[str, float]:
    """`answered`: the share with an answer; `timed_out`, `failed`: how many comparisons had no verdict, and why."""
    if not grades:
        return {}
    troubles = [grade.trouble for grade in grades if isinstance(grade, Unverified)]
    return {
        "answered": sum(grade.valid for grade in grades) / len(grades),
        "timed_out": float(troubles.count("timed_out")),
        "failed": float(troubles.count("failed")),
    }


def check(modes: Sequence[str]) -> None:
    """Raise a `UserError` when a mode needs a library that is not installed."""
    if set(modes) & set(_SYMBOLIC):
        _math_verifier.check()


PLUGIN = Grader(version=2, metric="exact_match", modes=MODES, grade=grade, summary=summary, check=check)
