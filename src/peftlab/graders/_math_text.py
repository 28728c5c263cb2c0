"""Where a worked solution declares its answer, and one spelling for answers written in LaTeX.

It reads and compares text only: whether two spellings mean the same value is not decided here.
"""

from __future__ import annotations

import re

from peftlab.graders._hedges import DENIED, OR, UNSURE

_DECLARATION = re.compile(
    r"#{4,}|\banswer[*_`]*(?:\s+is\b(?!\s+(?:in)?(?:correct|right|wrong|unique|valid)\b)\s*:?|\s*[:=])", re.IGNORECASE
)
_BOX = re.compile(r"\\(?:f?boxed|fbox)(?![A-Za-z])")
_MATH = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
_DENIAL = re.compile(r"(?:not|never|neither|nor|none)\b", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    rf"{DENIED}|[\s)\]}}]*(?:[A-Za-z]+\s+){{0,3}}?[\s,;(]*{OR}[\s(]*(?:(?:or|and)\b\s*)?{UNSURE}\s*(?:\$|\\[(\[]|[-+]?\d)",
    re.IGNORECASE,
)
"""After a formula: that it is none, or that there is another beside it."""


def box(text: str) -> str | None:
    """Content of the last `\\boxed{...}` or `\\fbox{...}`, braces matched; None without one, or when it is not closed.

    `\\boxed 5`, without braces, holds what follows up to a dollar sign or the line's end.
    """
    last = _last(_BOX, text)
    if last is None:
        return None
    after = text[last.end() :].lstrip()
    if not after.startswith("{"):
        return re.split(r"[$\n]", after, maxsplit=1)[0].strip() or None
    depth = 0
    for match in re.finditer(r"\\.|[{}]", after, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and match[0] == "}":
            return after[1 : match.start()].strip()
    return None


def declared(text: str, *, line: bool = False) -> tuple[bool, str | None]:
    """Whether an answer is declared, and which; None when the declaration says nothing.

    The last box declares it; without a box, the last `answer is`, `answer:`, `answer =` or `####`: then it is what
    stands between the dollar signs that follow, else the line up to the end of its first sentence (`line`: all of the
    line). What is denied (`is not`) says nothing, nor does a formula that another one follows (`$3$ or $5$`), or of
    which the sentence says that it is wrong.
    """
    if _BOX.search(text):
        return True, box(text)
    last = _last(_DECLARATION, text)
    return (False, None) if last is None else (True, _said(text[last.end() :], line=line))


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last: re.Match[str] | None = None
    for match in pattern.finditer(text):
        last = match
    return last


def _said(after: str, *, line: bool) -> str | None:
    said = after.lstrip(" \t:*_`\n").partition("\n")[0]
    if line:
        return bare(said) or None
    if _DENIAL.match(said):
        return None
    for opening, closing in _MATH:
        inside, found, rest = said[len(opening) :].partition(closing)
        if said.startswith(opening) and found and inside.strip():
            return None if _TAKEN_BACK.match(_SENTENCE_END.split(rest, maxsplit=1)[0]) else inside.strip()
    return bare(_SENTENCE_END.split(said, maxsplit=1)[0]) or None


def bare(text: str) -> str:
    """The text without white space, emphasis, dollar signs and a final dot around it."""
    return text.strip(" \t\n*_`").removesuffix(".").strip(" \t\n*_`").strip("$").strip()


def plain(text: str) -> str:
    """For comparing as text: lower case, one space for any white space, nothing around it."""
    return " ".join(bare(text).lower().split())


_REMOVED = re.compile(r"\n|\\!|\\(?:left|right)(?![A-Za-z])|\^\{\\circ\}|\^\\circ(?![A-Za-z])|\\[$%]")
_FRACTION = re.compile(r"\\frac(?P<top>[^{\\])(?:(?P<bottom>[^{\\])|(?=\{))")
UNIT = "\\text{ "
_QUOTIENT = re.compile(r"(-?\d+)/(-?\d+)")


def normalised(text: str) -> str:
    """One spelling for answers that differ in the form of their LaTeX only.

    The rules of the MATH benchmark's own evaluation (Hendrycks et al. 2021, `math_equivalence`), which CorDA's
    evaluation took over: line breaks, `\\!`, `\\left`, `\\right`, degree, dollar and percent signs are dropped;
    `\\\\` becomes `\\`, `tfrac` and `dfrac` become `frac`; a unit `\\text{ ...}` at the end goes; a number that
    begins with its point gets a zero; of an equation whose left side has at most two characters the right side stays;
    `\\sqrt3` and `\\frac12` get braces; blanks go; `0.5` is `\\frac{1}{2}`, and a quotient of two integers is a
    fraction. Where there are two `\\text{ ...}` neither is taken for a unit: there, an error then leads to comparing
    the texts as they are.
    """
    text = _REMOVED.sub("", text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac"))
    if text.count(UNIT) == 1:
        text = text.partition(UNIT)[0]
    text = re.sub(r"(^|[ {])\.", r"\g<1>0.", text)
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text.lstrip()).replace(" ", "")
    text = _FRACTION.sub(_braced, text)
    if text == "0.5":
        return "\\frac{1}{2}"
    quotient = _QUOTIENT.fullmatch(text)
    return f"\\frac{{{int(quotient[1])}}}{{{int(quotient[2])}}}" if quotient else text


def _braced(match: re.Match[str]) -> str:
    bottom = f"{{{match['bottom']}}}" if match["bottom"] else ""
    return f"\\frac{{{match['top']}}}{bottom}"
