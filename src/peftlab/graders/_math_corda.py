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
evaluated here: `_math_child.py` reads it as LaTeX, within a time limit. As there, letters are factors (`5cm` is 5 c m),
and a text with dollar signs is no expression. That parser reads as much of a text as it can (`x,2` as `x`); here all of
it must be an expression.
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
    one_side, other_side = _unbracketed(left, right)
    if one_side == other_side:
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


def _unbracketed(answer: str, reference: str) -> tuple[str, str]:
    """Both without braces and parentheses.

    Without square brackets around them only where the answer is in brackets, and the reference in none of the other
    kind: a bare answer is not a bracketed reference.
    """
    for opening, other in (("[", "("), ("(", "[")):
        if answer[:1] == opening and answer[-1:] == _BRACKETS[opening] and reference[:1] != other:
            answer, reference = answer.strip("[]()"), reference.strip("[]()")
            break
    return re.sub(r"[{}()]", "", answer), re.sub(r"[{}()]", "", reference)
