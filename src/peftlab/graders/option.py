"""Grades a generated answer that names one of the options on offer: `answer3`, `solution1`, `option2`, `true`, ...

The names belong to five families, told by the example's reference, which is such a name, alone or after `the correct
answer is`. It knows neither the question nor how many options it had, and reads no letters, words or option texts.

Modes:
    first: The parsers of LLM-Adapters' `commonsense_evaluate.py`, so that scores compare with those published: the
        first name of the family anywhere in the text, in lower case as written: `true|false`, `solution1|solution2`,
        `answer1` to `answer5`, `ending1` to `ending4`, `option1|option2`. They see no ends of words (`untrue` is true,
        `answer12` is answer1), no negation, and take the first of an echoed list of options.
    strict: The name that is declared (`answer is answer3`, with `:`, quotes or emphasis), in any case, as a whole word,
        digits of any script, with or without a space before the number (`Answer 3`). The last declaration counts.
        Without one, the text must name one option only. Negated names (`not answer1`, `never answer1`, `answer1 is
        wrong`) and pairs (`answer1 or maybe answer2`, `true/false`) declare nothing.
    s3: The parser of the HiRA baselines, for its results: in lower case, for true and false the first of them; for
        solutions the first digit anywhere, whatever it counts; for other families, which there stand only in the
        mixture of all sets, the first name after `the correct answer is`, else the first name anywhere, where the
        families are tried in the order true or false, answer, option, ending, solution.

What no rule finds is an invalid answer and wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

from peftlab.errors import UserError, unknown_name
from peftlab.graders._hedges import DENIED, OR, UNSURE
from peftlab.protocols import Example, Grade, Grader, Prediction

MODES = ("first", "strict", "s3")

_FIRST: Mapping[str, re.Pattern[str]] = {
    "true": re.compile("true|false"),
    "solution": re.compile("solution1|solution2"),
    "answer": re.compile("answer1|answer2|answer3|answer4|answer5"),
    "ending": re.compile("ending1|ending2|ending3|ending4"),
    "option": re.compile("option1|option2"),
}
_CASCADE = ("true", "answer", "option", "ending", "solution")
_NAME = re.compile(r"(?:the correct answer is )?(true|false|(?:solution|answer|ending|option)[1-9][0-9]*)")


def _reference(example: Example) -> str:
    found = _NAME.fullmatch(str(example.reference).strip())
    if found is None:
        raise UserError(
            f"item {example.item}: the reference {example.reference!r} names no option",
            fix="it is true, false, or answer, solution, ending or option with a number, such as answer3",
        )
    return found[1]


def _family(name: str) -> str:
    return "true" if name in ("true", "false") else name.rstrip("0123456789")


def first(text: str, family: str) -> str | None:
    """The first name of the family, as LLM-Adapters finds it."""
    found = _FIRST[family].search(text.strip())
    return found[0] if found else None


# ------------------------------------------------------------------------------------------------------- strict


@cache
def _names(family: str) -> re.Pattern[str]:
    return re.compile(r"true|false" if family == "true" else rf"{family}[ _]?0*(?P<number>[1-9]\d*|\d)")


@cache
def _mentions(family: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A name as a whole word that nothing negates; and one that is declared, with what may make it one of several."""
    name = re.sub(r"\(\?P<number>", "(?:", _names(family).pattern)
    word = rf"(?<![\w-])(?<!not )(?<!n't )(?<!never )(?<!neither )(?<!nor )(?:{name})(?!\w)(?!{DENIED})"
    several = rf"(?P<more>[\s\"'`*()]*{OR}[\s(]*(?:(?:or|and)\b\s*)?{UNSURE}[\s\"'`*(]*(?:{name})(?!\w))?"
    return re.compile(word), re.compile(rf"\banswer(?: is)?\s*[:=]?[\s\"'`*(]*(?P<name>{word}){several}")


def strict(text: str, family: str) -> str | None:
    """The declared name, or the only one; None when nothing is declared, or more than one."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    mention, declaration = _mentions(family)
    declared = list(declaration.finditer(plain))
    if declared:
        return None if declared[-1]["more"] else _canonical(declared[-1]["name"], family)
    named = {_canonical(found[0], family) for found in mention.finditer(plain)}
    return named.pop() if len(named) == 1 else None


def _canonical(name: str, family: str) -> str:
    found = _names(family).fullmatch(name)
    assert found is not None
    return name if family == "true" else f"{family}{int(found['number'])}"


# ----------------------------------------------------------------------------------------------------------- s3


def s3(text: str, family: str) -> str | None:
    """What the parser of the HiRA baselines finds."""
    text = text.lower()
    if family == "true":
        return first(text, "true")
    if family == "solution":
        digit = re.search(r"\d", text)
        return f"solution{digit[0]}" if digit else None
    names = "|".join(f"(?:{_FIRST[one].pattern})" for one in _CASCADE)
    declared = re.search(rf"the correct answer is ({names})", text)
    if declared:
        return declared[1]
    return next((found for one in _CASCADE if (found := first(text, one))), None)


_PARSERS = {"first": first, "strict": strict, "s3": s3}


# ------------------------------------------------------------------------------------------------------ grading


def grade(prediction: Prediction, example: Example, mode: str) -> Grade:
    """1 when the option that the text names is the reference, else 0."""
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    expected = _reference(example)
    found = _PARSERS[mode](prediction.text or "", _family(expected))
    return Grade(score=float(found == expected), answer=found, valid=found is not None)


def summary(grades: Sequence[Grade], examples: Sequence[Example]) -> Mapping[str, float]:
    """What a constant answer would score, how many answers were found, and how they spread.

    `baseline_constant_answer` is the share of the most frequent reference; `valid_answer_rate` that of the items with
    an answer; `answer_share_<name>` that of the items answered so, for every name that is a reference or an answer.
    """
    if not grades:
        return {}
    total = len(grades)
    references = Counter(_reference(example) for example in examples)
    answers = Counter(grade.answer for grade in grades if grade.answer is not None)
    return {
        "baseline_constant_answer": max(references.values()) / total,
        "valid_answer_rate": sum(grade.valid for grade in grades) / total,
        **{f"answer_share_{name}": answers[name] / total for name in sorted({*references, *answers})},
    }


PLUGIN = Grader(version=2, metric="acc", modes=MODES, grade=grade, summary=summary)
