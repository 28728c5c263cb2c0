"""Reads and compares answers as peft's method comparison does, so that its published scores can be compared.

This is the grader mode `numeric:s0`: its rules are reproduced with what they miss, and nothing here is mended; `strict`
and `flexible` are the repaired rules. It reads no other declarations, units or LaTeX.

Rules (`parse_answer`, `convert_to_decimal` and the accuracy there):
    reading: The text without white space around it and without final `.!?`. Of the delimiters, in their order, the
        first that occurs anywhere decides; what follows its last occurrence, up to the end of the line, without any of
        ` .!?$%` around it, is the answer. No delimiter: no answer.
    comparing: An answer is a decimal number, or a quotient of two (`3/4`; a zero denominator is no number), compared as
        a float; whatever else stays text. Two answers are equal as numbers or as texts. So a comma for thousands makes
        a text: `1,200` equals `1,200` but not `1200`, and 14 of the 1319 test references of GSM8K have one.

Two differences, neither of which changes a score of GSM8K's test: there, prompt and answer are read as one text; here
it is the answer alone, so that a delimiter in the prompt never declares anything (there, a question's words are the
answer when the completion has no delimiter that comes earlier in the order). And a reference without a delimiter, at
which grading stops there with an error, is compared whole.
"""

from __future__ import annotations

from decimal import Decimal, DecimalException

DELIMITERS = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")


def parsed(text: str) -> str | None:
    """The declared answer as text, or None without a delimiter."""
    text = text.strip().rstrip(".!?")
    for delimiter in DELIMITERS:
        if delimiter in text:
            return text.rpartition(delimiter)[2].split("\n", 1)[0].strip(" .!?$%")
    return None


def comparable(answer: str) -> float | str:
    """The answer as a float where it is a decimal number or a quotient of two, else itself."""
    try:
        if "/" in answer:
            top, bottom = answer.split("/")
            return float(Decimal(top) / Decimal(bottom))
        return float(Decimal(answer))
    except (DecimalException, ValueError, OverflowError):  # also: more than one `/`, and a signalling NaN
        return answer


def equal(answer: str, reference: str) -> bool:
    """Whether the answer counts as correct; NaN equals nothing, no text equals no text."""
    return bool(answer) and comparable(answer) == comparable(reference)
