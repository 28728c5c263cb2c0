"""Take the commonsense rows of LLM-Adapters apart: question, options (any number), the index of the answer.

Such a row holds one text, `instruction`: an introduction that ends in a colon, the question, `Answer1: ... Answer2:
...` (or Solution, Ending, Option), and the format of an answer; and `answer`, one of the names in that format. The
introduction and the names differ from set to set. Nothing here is about a model; several tasks import it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from peftlab.errors import UserError

_INSTRUCTION = re.compile(
    r"Please choose the correct (?:answer|solution|ending) to [^:]*: (?P<question>.*?)\s*"
    r"\n\n(?P<options>(?P<kind>Answer|Solution|Ending|Option)1: .*?)\s*Answer format: (?P<names>\w+(?:/\w+)+)\s*",
    re.DOTALL,
)
_YES_OR_NO = re.compile(
    r"Please answer the following question with true or false, question: (?P<question>.*?)\s*"
    r"\n\nAnswer format: true/false\s*",
    re.DOTALL,
)
_LAST_QUESTION = re.compile(r"(?P<context>.*\S)\s+(?:What|Why|How|Who|Where|When|Which)\b.*", re.DOTALL)
_MARK = re.compile(r"\[.*?\]")

Row = Mapping[str, Any]


def choices(row: Row) -> dict[str, Any]:
    """The row with its `question`, its options as `choices`, and the index of the right one as `answer`.

    The answer's name stays, as `name`.
    """
    found = _INSTRUCTION.fullmatch(row["instruction"])
    names = found["names"].split("/") if found else []
    options = _options(tuple(names)).fullmatch(found["options"]) if found else None
    if found is None or options is None or row["answer"] not in names:
        raise _refused(row)
    texts = [option.strip() for option in options.groups()]
    return {**row, **_answered(row, names), "question": found["question"], "choices": texts}


def yes_or_no(row: Row) -> dict[str, Any]:
    """The same of a row that is answered with true or false: its options are yes and no."""
    found = _YES_OR_NO.fullmatch(row["instruction"])
    if found is None or row["answer"] not in ("true", "false"):
        raise _refused(row)
    return {**row, **_answered(row, ["true", "false"]), "question": found["question"], "choices": ["yes", "no"]}


def situation(row: Row) -> dict[str, Any]:
    """The same of a row whose question ends in one about what stands before it: that is its `context`."""
    found = choices(row)
    asked = _LAST_QUESTION.fullmatch(found["question"])
    return {**found, "context": asked["context"] if asked else found["question"]}


def ending(row: Row) -> dict[str, Any]:
    """The same of a text to go on with; `activity` is what stands before its first colon.

    The marks of the WikiHow texts ([header], [title], [step]) are taken out as lm-evaluation-harness does: a title
    begins a sentence, the others go, and double spaces with them. There, the last sentence's first letter is made a
    capital as well; a row of this format does not say where that sentence begins.
    """
    found = choices(row)
    activity = found["question"].partition(":")[0]
    plain = [_without_marks(text) for text in found["choices"]]
    return {**found, "activity": activity, "question": _without_marks(found["question"]), "choices": plain}


def blank(row: Row) -> dict[str, Any]:
    """The same of a sentence with a blank: `before` it, and the options as what may follow, up to the sentence's end.

    `twins` is what the two sentences of a pair share: their options, and their first three words.
    """
    found = choices(row)
    before, gap, after = found["question"].partition("_")
    if not gap:
        raise _refused(row)
    texts = [f"{option}{after}" for option in found["choices"]]
    start = " ".join(found["question"].split()[:3])
    twins = " | ".join([*sorted(found["choices"]), start])
    return {**found, "before": before.rstrip(), "choices": texts, "twins": twins}


def lettered(row: Row) -> dict[str, Any]:
    """A row of the hub whose options have letters, as `choices` gives it; also as an `instruction` of this format."""
    try:
        question, texts = row["question"].strip(), list(row["choices"]["text"])
        names = [f"answer{number}" for number in range(1, len(texts) + 1)]
        answer = list(row["choices"]["label"]).index(row["answerKey"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"no question with lettered options and an answer: {str(dict(row))[:200]}",
            fix="rows without a public answer cannot be used",
        ) from None
    written = " ".join(f"{name.capitalize()}: {text}" for name, text in zip(names, texts, strict=True))
    return {
        **row,
        "instruction": f"Please choose the correct answer to the question: {question}\n\n{written}\n\n"
        f"Answer format: {'/'.join(names)}",
        "output": f"the correct answer is {names[answer]}",
        "name": names[answer],
        "question": question,
        "choices": texts,
        "answer": answer,
    }


def _answered(row: Row, names: list[str]) -> dict[str, Any]:
    return {"name": row["answer"], "answer": names.index(row["answer"])}


def _without_marks(text: str) -> str:
    return _MARK.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


@cache
def _options(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(r"\s+".join(f"{name.capitalize()}: (.*?)" for name in names) + r"\s*", re.DOTALL)


def _refused(row: Row) -> UserError:
    return UserError(
        f"no multiple-choice row: {str(dict(row))[:200]}", fix="is this a data set in the format of LLM-Adapters?"
    )
