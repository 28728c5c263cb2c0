"""Grades answers that are one number, exactly.

It reads a number out of a completion and compares it with the reference's as fractions; floats are never used, so
2.0 equals 2 and 0.333 does not equal 1/3. It does not evaluate expressions, read numbers written as words, or look at
the prompt: an answer that stands only in the prompt never counts.

Modes:
    strict: The *declared* answer: the number that directly follows the last declaration, on its line. Declarations are
        `answer is` (the answer is, the final answer is, ...; not `the answer is correct`), `answer:`, `answer =`,
        `<answer>`, `####` and `\\boxed{}` (`\\fbox{}`), in any case. After one may come a working, whose last value
        counts (`3 + 4 = 7`, `x = 7`), quotes, brackets, emphasis, a currency and words such as `exactly`. A box must be
        closed and hold one number. Something else after a declaration, such as `unknown`, or more than one number (a
        list `1, 2`, a range `3-4`, `3 or 4`, `3 (or 4)`, a time, a date, a sum, `5x`) declares nothing, nor does `3 is
        wrong`: the answer is invalid. A
        completion without any declaration counts only when all of it is one number, with an optional currency, unit and
        final punctuation.
    flexible: The last number anywhere; of a list, a range, a time or a date the last one.
    s0: The rules of another system, faults included, so that its published scores can be compared: `_s0_answers.py`.
        Text there, not a number: what follows says nothing about it.

Numbers: sign (Unicode minus too) that touches the number or its currency, digits of any script, thousands in groups of
three after a comma (`1,234,567`; `1,2` is two numbers; `\\,` and thin spaces group as well), decimals with a point,
`1e6`, `3 x 10^6`, fractions `3/4` and `\\frac{3}{4}`, mixed numbers `1 3/4`. A percent sign, a currency and units are
dropped: 50% is 50, 2 million is 2. European forms (`1.234,5`) are not guessed. Digits in a name (`H2O`, `x_1`) and
exponents of a unit (`cm^2`) are no numbers. A power, a zero denominator and a number beyond 300 digits are unreadable:
found last, they make the answer invalid. GSM8K's calculator notes (`<<2+3=5>>`) are not part of the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from peftlab.errors import UserError, unknown_name
from peftlab.graders import _s0_answers
from peftlab.graders._hedges import DENIED, UNSURE
from peftlab.protocols import Example, Grade, Grader, Prediction

MAX_DIGITS = 300

# ---------------------------------------------------------------------------------------------- plain text

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("\u2044\u2215\uff0f", "/"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u3000", " "),
        **dict(
            zip(
                "\uff0b\uff05\u066a\uff04\uff1a\uff1d\u066b\uff0e\u066c\u22c5\u2217\u202f",
                "+%%$:=..,\u00b7*\u2009",
                strict=True,
            )
        ),
    }
)
_SUPERSCRIPTS = re.compile("[\u207a\u207b\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")

_LATEX: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\\!\s*+|\\(?:left|right|displaystyle)(?![A-Za-z])"), ""),
    (re.compile(r"\\,"), "\u2009"),
    (re.compile(r"\\([%$#&])"), r"\1"),
    (re.compile(r"\\[;: ()\[\]]|\\q?quad\b|\\approx\b"), " "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\^\s*+(?:\{\s*\\circ\s*\}|\\circ\b)|\\degree\b"), "\u00b0"),
    (re.compile(r"\\times\b"), "\u00d7"),
    (re.compile(r"\\cdot\b"), "\u00b7"),
    (re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:bf|rm|it)|mbox|emph|underline)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\s*\{\s*([-+]?\d+)\s*\}"), r"^\1"),
)
_FRAC = re.compile(
    r"\\[dtc]?frac\s*(?:\{\s*(?P<top>[-+]?[\d.,]+)\s*\}|(?P<short_top>\d))"
    r"\s*(?:\{\s*(?P<bottom>[\d.,]+)\s*\}|(?P<short_bottom>\d))"
)
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_NEGATIVE = re.compile(r"\bnegative\s+(?=[$\d.])", re.IGNORECASE)


def _plain(text: str) -> str:
    """The text with one spelling for signs, digits, fractions, exponents and LaTeX; braces stay."""
    if not text.isascii():
        text = text.translate(_CHARACTERS)
        text = _SUPERSCRIPTS.sub(lambda m: "^" + unicodedata.normalize("NFKD", m[0]).replace("\u2212", "-"), text)
        text = _VULGAR.sub(_vulgar, text)
        text = re.sub(r"(?![0-9])\d", lambda m: str(unicodedata.decimal(m[0])), text)
    text = _CALCULATOR.sub("", text)
    if "\\" in text or "{" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
        text = _FRAC.sub(_frac, text)
    return _NEGATIVE.sub("-", text)


def _vulgar(match: re.Match[str]) -> str:
    return _apart(match) + unicodedata.normalize("NFKD", match[0]).replace("\u2044", "/")


def _frac(match: re.Match[str]) -> str:
    return f"{_apart(match)}{match['top'] or match['short_top']}/{match['bottom'] or match['short_bottom']} "


def _apart(match: re.Match[str]) -> str:
    """A space when a digit stands before the fraction: the two are a mixed number."""
    return " " if match.string[max(match.start() - 1, 0) : match.start()].isdigit() else ""


# -------------------------------------------------------------------------------------------------- numbers

_CURRENCY = "(?:[A-Z]{0,3}[$\u00a2-\u00a5\u20a0-\u20c0]|(?:USD|EUR|GBP|INR|Rs\\.?)(?![A-Za-z]))[ \u2009]?"
_INTEGER = "(?:[1-9]\\d{0,2}(?:,\\d{3})+(?!\\d)|[1-9]\\d{0,2}(?:\u2009\\d{3})+(?!\\d)|\\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d+)?|(?<![\d.])\.\d+)"
_NUMBER = re.compile(
    rf"""
    (?P<skip>\^\s?[-+]?\d+ | (?:(?<=[A-Za-z])(?<!\d[xX])|(?<=[A-Za-z0-9]_))\d+(?:\.\d+)*)
    | (?P<sign>(?<![A-Za-z0-9)\]}}%.+-])[-+])?
      (?:(?<![A-Za-z]){_CURRENCY}(?P<inner>[-+])?|(?<![A-Za-z])(?<![A-Za-z0-9]_)|(?<=\d[xX]))
      (?:(?P<whole>{_INTEGER})[ ]+(?=\d+/\d))?
      (?P<first>{_DECIMAL})
      (?: [eE](?P<exponent>[-+]?\d+)(?![A-Za-z0-9])
        | [ ]?[xX*\u00d7\u00b7][ ]?10\^(?P<tens>[-+]?\d+)
        | [ ]?\^(?P<power>[-+]?\d*)
        | (?P<rest>(?:[ ]?/[ ]?{_DECIMAL})+) )?
    """,
    re.VERBOSE,
)


class _Read(NamedTuple):
    """A number as it was read: its value (None: unreadable), and whether it stood alone."""

    value: Fraction | None
    single: bool


def _read(match: re.Match[str]) -> _Read:
    sign = -1 if "-" in (match["sign"], match["inner"]) else 1
    parts = [_fraction(part) for part in [match["first"], *(match["rest"] or "").split("/")[1:]]]
    whole = _fraction(match["whole"]) if match["whole"] else Fraction(0)
    if None in parts or whole is None:
        return _Read(None, False)
    values = [part for part in parts if part is not None]
    if match["power"] is not None:
        return _Read(_scaled(Fraction(sign), match["power"]) if match["first"] == "10" else None, True)
    if len(values) > 2:
        return _Read(values[-1], False)
    if len(values) == 2:
        if values[1] == 0:
            return _Read(None, False)
        quotient = values[0] / values[1]
        if match["whole"] and quotient >= 1:
            return _Read(quotient, False)
        return _Read(sign * (whole + quotient), True)
    return _Read(_scaled(sign * values[0], match["exponent"] or match["tens"] or "0"), True)


def _fraction(text: str) -> Fraction | None:
    digits = text.strip().replace(",", "").replace("\u2009", "")
    return None if len(digits) > MAX_DIGITS else Fraction(digits)


def _scaled(value: Fraction, exponent: str) -> Fraction | None:
    if not exponent.lstrip("+-") or len(exponent) > 5 or abs(int(exponent)) > MAX_DIGITS:
        return None
    return value * Fraction(10) ** int(exponent)


def canonical(value: Fraction) -> str:
    """One spelling per number: an integer, a finite decimal, or a fraction in lowest terms."""
    digits, remainder = 0, value.denominator
    while remainder % 10 == 0 or remainder % 2 == 0 or remainder % 5 == 0:
        remainder //= next(factor for factor in (10, 2, 5) if remainder % factor == 0)
        digits += 1
    if remainder != 1 or digits == 0:
        return str(value)
    text = str(abs(value.numerator) * 10**digits // value.denominator).rjust(digits + 1, "0")
    return f"{'-' if value < 0 else ''}{text[:-digits]}.{text[-digits:]}".rstrip("0")


# -------------------------------------------------------------------------------------------------- answers

_DECLARATION = re.compile(
    r"\banswer[*_`]*(?:\s+is\b(?!\s+(?:in)?(?:correct|right|wrong|unique|valid|reasonable)\b)|\s*[:=])"
    r"|<answer>|#{4,}|\\f?boxed\b|\\fbox\b",
    re.IGNORECASE,
)
_WORDS = "exactly|simply|just|only|approximately|about|roughly|equal to|therefore|thus|USD|EUR|GBP|INR|Rs\\.?"
_FILLER = re.compile(rf"(?:[\s:*_`\"'(\[{{<>|$\u2248~]|(?:{_WORDS})(?=[\s:$]))*+", re.IGNORECASE)
_WORKING = re.compile(
    r"(?:(?:[A-Za-z]\s*|(?:[\d\s.+*/$%^\u00d7\u00f7\u00b7\u2009-]|,(?=\d{3})|[xX](?=\s*\d))*+)=(?!=)[\s$]*+)*+",
    re.ASCII,
)
_VARIABLE = r"(?![mgshlLCFKVWAJN])[A-Za-z](?![A-Za-z])"
_LETTER = r"[A-Za-z](?![A-Za-z])(?:\^\d)?"
_MORE = re.compile(
    rf"{_VARIABLE}|[%\u00b0]?\s*+(?:(?:[-+*/:,;&~_xX\u00d7\u00b7\u00f7]|\.(?=\d)|(?<=\s)(?:to|and|or)\s)\s*(?:{_CURRENCY})?[-+]?\.?\d"
    rf"|\^|\d|[/*]?\s*(?:\\(?:sqrt|pi|frac|pm)\b|[\u221a\u03c0])|{_LETTER}\s*[-+*=]\s*(?:\d|{_LETTER}))"
)
_TAKEN_BACK = re.compile(
    rf"{DENIED}|[%\u00b0)\]}}*_`\"'$]*[\s,]*(?:[^\W\d_]+[,\s]+){{0,3}}?[\s(\[,;]*\bor\b\s*{UNSURE}"
    rf"[\s(\[$]*(?:{_CURRENCY})?[-+]?\.?\d",
    re.IGNORECASE,
)
"""After a number: that it is not the answer, or another one with `or`."""
_WORD = rf"(?!x\d|{_VARIABLE})[^\W\d_]+\.?(?:\s?\^[23]|[23])?"
_UNIT = rf"(?:(?:square|cubic|sq\.?|cu\.?)\s+)?(?:{_WORD}|\u00b0{_WORD}|[%\u00b0])"
_TAIL = re.compile(
    rf"\s*+[%\u00b0]?[)\]}}*_`\"'$]*+\s*+(?:(?:{_UNIT})?\s*(?:(?:per|a|an)\s+{_WORD}|/\s*{_WORD})|{_UNIT})?+"
    r"[\s.!?,;:*_`\"')\]}$>|\u3002]*+"
)


def _whole(text: str) -> Fraction | None:
    """The number that the text consists of, with an optional currency, unit and final punctuation."""
    match = _NUMBER.match(text, _end(_FILLER, text, 0))
    if match is None or match["skip"]:
        return None
    number = _read(match)
    return number.value if number.single and _TAIL.fullmatch(text, match.end()) else None


def _following(text: str) -> Fraction | None:
    """The one number at the start of the text."""
    match = _NUMBER.match(text, _end(_FILLER, text, _end(_WORKING, text, _end(_FILLER, text, 0))))
    if match is None or match["skip"] or _MORE.match(text, match.end()) or _TAKEN_BACK.match(text, match.end()):
        return None
    number = _read(match)
    return number.value if number.single else None


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start


def _boxed(text: str) -> str | None:
    """The content of a box whose opening brace is the text's first character; None when it is not closed."""
    depth = 0
    for match in re.finditer(r"[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[1 : match.start()]
    return None


def strict(text: str) -> Fraction | None:
    """The declared answer, or None; see the module."""
    text = _plain(text)
    last: re.Match[str] | None = None
    for match in _DECLARATION.finditer(text):
        last = match
    if last is None:
        return _whole(text)
    after = text[last.end() :]
    if last[0].startswith("\\") and after.lstrip().startswith("{"):
        content = _boxed(after.lstrip())
        return None if content is None else _whole(content[_end(_WORKING, content, 0) :])
    return _following(after.partition("\n")[0])


def flexible(text: str) -> Fraction | None:
    """The last number, or None; see the module."""
    last: re.Match[str] | None = None
    for match in _NUMBER.finditer(_plain(text)):
        if not match["skip"]:
            last = match
    return None if last is None else _read(last).value


_READERS = {"strict": strict, "flexible": flexible}
_MODES = (*_READERS, "s0")


def _reference(example: Example) -> Fraction:
    """The number of a reference: after the last `####` (or another declaration), or the whole of a bare number."""
    value = strict(_reference_text(example))
    if value is None:
        raise _no_number(example)
    return value


def _reference_text(example: Example) -> str:
    reference = example.reference
    if isinstance(reference, str) or (isinstance(reference, int | float) and not isinstance(reference, bool)):
        return str(reference)
    raise _no_number(example)


def _no_number(example: Example) -> UserError:
    reference = example.reference
    return UserError(
        f"item {example.item}: the reference {str(reference)[-80:]!r} holds no number",
        fix="let the task's 'reference' name a column with '#### N' or a bare number, or take another grader",
    )


def grade(prediction: Prediction, example: Example, mode: str) -> Grade:
    """1 when the number read in `mode` equals the reference's, else 0; invalid when none was found."""
    if mode not in _MODES:
        raise unknown_name("mode", mode, _MODES)
    if mode == "s0":
        return _grade_s0(prediction.text or "", _reference_text(example))
    expected = _reference(example)
    value = _READERS[mode](prediction.text or "")
    if value is None:
        return Grade(score=0.0, answer=None, valid=False)
    return Grade(score=float(value == expected), answer=canonical(value), valid=True)


def _grade_s0(text: str, reference: str) -> Grade:
    expected = _s0_answers.parsed(reference)
    answer = _s0_answers.parsed(text)
    if not answer:
        return Grade(score=0.0, answer=None, valid=False)
    correct = _s0_answers.equal(answer, reference.strip() if expected is None else expected)
    return Grade(score=float(correct), answer=answer, valid=True)


def summary(grades: Sequence[Grade], examples: Sequence[Example]) -> Mapping[str, float]:
    """`answered`: the share of completions in which an answer was found."""
    return {"answered": sum(grade.valid for grade in grades) / len(grades)} if grades else {}


PLUGIN = Grader(version=2, metric="exact_match", modes=_MODES, grade=grade, summary=summary)
