"""Reads and compares answers as CorDA's evaluation of GSM8K and MATH does, so that published scores can be compared.

This is the grader mode `math:corda`: its rules are reproduced with what they forgive (which is much), but for one
fault.

Reading: the text after the last `The answer is: ` is the answer; without one there is none. The reference decides how
    it is read. `#### N` (GSM8K): the first number of it, commas dropped, a quotient divided (by 0: its numerator),
    rounded to an integer; since one comma at most is part of that number, `1,234,567` is read as 1,234. Else (MATH):
    up to a dot at the end of a line, without a final dot; the reference is its last box.
Comparing (`is_equiv`, `math_equal`): both are normalised as the MATH benchmark does. Equal are, in this order:
    the texts are; or, if both are numbers, the answer is the reference, a hundredth or the hundredfold of it, within
    one part in 10 000, and then nothing else counts; or the texts are without their brackets and braces; or both are
    lists in equal brackets of one length whose elements are equal; or they are symbolically, or in value within one
    part in 1 000.

Mended: there, an error in normalising or comparing makes the comparison go on with the answer against itself, so that
an answer that cannot be read is correct. Here such an answer is compared as text.
Differs: there, LaTeX is read by sympy's parser, or the text is evaluated by Python; nothing that a model wrote is
evaluated here: `_math_child.py` reads it as LaTeX, within a time limit.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from peftlab.graders import _math_text, _math_verifier
from peftlab.graders._math_verifier import Verdict

_MARK = "The answer is: "
_NUMBER = re.compile(r"[-+]?\d*[.,/]?\d+", re.ASCII)
_BRACKETS = {"[": "]", "(": ")"}


def answer(text: str, *, number: bool) -> str | None:
    """The declared answer: as an integer's text (`number`), or as text."""
    _, mark, said = text.rpartition(_MARK)
    if not mark:
        return None
    if number:
        return _rounded(said)
    return said.split(".\n")[0].strip().removesuffix(".").strip() or None


def _rounded(text: str) -> str | None:
    match = _NUMBER.search(text)
    if match is None:
        return None
    top, slash, bottom = match[0].replace(",", "").partition("/")
    if slash and not top.lstrip("+-"):
        return None
    value = Fraction(top) / Fraction(bottom) if slash and int(bottom) else Fraction(top)
    return str(round(value))


def equal(answer: str, reference: str) -> Verdict:
    """Whether the answer counts as correct."""
    if max(answer.count(_math_text.UNIT), reference.count(_math_text.UNIT)) > 1:
        return Verdict(equal=answer == reference)  # which the normalisation fails at, there
    left, right = _math_text.normalised(answer), _math_text.normalised(reference)
    return Verdict(equal=True) if left == right else _same(left, right)


def _same(left: str, right: str) -> Verdict:
    if left == right:
        return Verdict(equal=True)
    one, other = _number(left), _number(right)
    if one is not None and other is not None:
        return Verdict(equal=any(math.isclose(one, other * scale, rel_tol=1e-4) for scale in (0.01, 1, 100)))
    if not left:
        return Verdict(equal=False)
    if _unbracketed(left, right) == _unbracketed(right, left):
        return Verdict(equal=True)
    if left[:1] in _BRACKETS and left[:1] == right[:1] and left[-1:] == right[-1:] == _BRACKETS[left[0]]:
        pairs = list(zip(left[1:-1].split(","), right[1:-1].split(","), strict=False))
        if left.count(",") == right.count(",") and all(_same(a.strip(), b.strip()).equal for a, b in pairs):
            return Verdict(equal=True)
    return _math_verifier.symbolic(left, right)


def _number(text: str) -> float | None:
    try:
        value = float(text.replace(",", ""))
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _unbracketed(text: str, other: str) -> str:
    """Without braces and parentheses, and square brackets where the other side does not begin with a parenthesis."""
    if text[:1] == "[" and text[-1:] == "]" and other[:1] != "(":
        text = text.strip("[]()")
    return re.sub(r"[{}()]", "", text)
