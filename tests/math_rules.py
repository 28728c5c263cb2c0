"""The equality rules of two evaluations of MATH, written from what is known of them and without the grader; and pairs.

`hendrycks` is the MATH benchmark's own rule, `corda` that of CorDA's evaluation. The latter reads LaTeX here by
replacing a few commands and giving the rest to sympy's parser, so it may be shown the pairs of this file only.

    python tests/math_rules.py     how often each mode of the grader agrees with them, and where it does not
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MIRROR = Path(os.environ.get("PEFTLAB_MIRROR") or Path(__file__).parents[2] / "shared" / "data")


def rows(*parts: str) -> list[dict[str, Any]]:
    """The rows of files of the mirror, in order."""
    found = []
    for part in parts:
        with gzip.open(MIRROR / f"{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
            found += [json.loads(line) for line in lines]
    return found


# ------------------------------------------------------------------------------------------------- the two rules


class Unusual(Exception):
    """What makes the benchmark's normalisation fail: it then compares the texts as they are."""


def _spelt(text: str) -> str:
    for dropped in ("\n", "\\!"):
        text = "".join(text.split(dropped))
    text = text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for dropped in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"):
        text = "".join(text.split(dropped))
    pieces = text.split("\\text{ ")
    if len(pieces) > 2:
        raise Unusual
    text = "".join(pieces[0].split("\\%"))
    for before in (" ", "{"):
        text = text.replace(before + ".", before + "0.")
    if text.startswith("."):
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) < 3:
        text = sides[1]
    text = _each(text, "\\sqrt", 1).replace(" ", "")
    text = _each(text, "\\frac", 2)
    if text == "0.5":
        return "\\frac{1}{2}"
    top, slash, bottom = text.partition("/")
    if slash and all(re.fullmatch(r"-?(0|[1-9]\d*)", side) for side in (top, bottom)):
        return f"\\frac{{{top}}}{{{bottom}}}"
    return text


def _each(text: str, command: str, arguments: int) -> str:
    """Braces around the one-character arguments of a command."""
    head, *tails = text.split(command)
    for tail in tails:
        head += command
        for left in range(arguments, 0, -1):
            if tail.startswith("{"):
                break
            if len(tail) < left:
                if arguments == 1:
                    raise Unusual
                break
            head, tail = head + "{" + tail[0] + "}", tail[1:]
        head += tail
    return head


def hendrycks(answer: str, reference: str) -> bool:
    """Equal texts after the benchmark's normalisation."""
    try:
        return _spelt(answer) == _spelt(reference)
    except Unusual:
        return answer == reference


def corda(answer: str, reference: str) -> bool:
    """Equal as the benchmark has it, or by the rules for numbers, brackets, elements and expressions."""
    try:
        answer, reference = _spelt(answer), _spelt(reference)
    except Unusual:
        return answer == reference
    return answer == reference or _alike(answer, reference)


def _alike(answer: str, reference: str) -> bool:
    numbers = [_value(answer), _value(reference)]
    if None not in numbers:
        said, right = (float(number) for number in numbers if number is not None)
        near = (
            abs(said - wanted) <= 1e-4 * max(abs(said), abs(wanted)) for wanted in (right, right / 100, right * 100)
        )
        return any(near)
    if not answer:
        return False
    plain = [answer, reference]
    square, round_ = (answer[0] + answer[-1] == pair for pair in ("[]", "()"))
    if (square and reference[:1] != "(") or (round_ and reference[:1] != "["):
        plain = [side.strip("[]()") for side in plain]
    if len({"".join(c for c in side if c not in "{}()") for side in plain}) == 1:
        return True
    for pair in ("[]", "()"):
        if all(len(side) > 1 and side[0] + side[-1] == pair for side in (answer, reference)):
            elements = [side[1:-1].split(",") for side in (answer, reference)]
            if len(elements[0]) == len(elements[1]) and all(
                a.strip() == b.strip() or _alike(a.strip(), b.strip()) for a, b in zip(*elements, strict=True)
            ):
                return True
    return _symbolic(answer, reference)


def _value(text: str) -> float | None:
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


_WORDS = ("sqrt", "pi")


def _symbolic(answer: str, reference: str) -> bool:
    import sympy

    left, right = _expression(answer), _expression(reference)
    if left is None or right is None:
        return False
    if sympy.simplify(left - right) == 0:
        return True
    try:
        return bool(abs(left - right).evalf() <= 1e-3 * max(abs(left).evalf(), abs(right).evalf()))
    except TypeError:  # there are variables in it
        return False


def _expression(text: str) -> Any:
    """The expression, for fractions, roots, pi, powers, products and single letters; else None."""
    from sympy.parsing.sympy_parser import implicit_multiplication, parse_expr, standard_transformations

    while (found := re.search(r"\\frac\{([^{}]*)\}\{([^{}]*)\}|\\sqrt\{([^{}]*)\}|\^\{([^{}]*)\}", text)) is not None:
        top, bottom, root, power = found.groups()
        new = f" sqrt({root})" if root is not None else f"**({power})" if power is not None else f"(({top})/({bottom}))"
        text = text[: found.start()] + new + text[found.end() :]
    text = text.replace("\\pi", " pi ").replace("\\cdot", "*").replace("^", "**")
    if re.search(r"[^\w\s+*/().-]", text):
        return None
    text = re.sub(r"[A-Za-z]+", lambda word: word[0] if word[0] in _WORDS else " ".join(word[0]), text)
    try:
        return parse_expr(text, transformations=(*standard_transformations, implicit_multiplication))
    except (SyntaxError, TypeError, ValueError, AttributeError, RecursionError):
        return None


# ------------------------------------------------------------------------------------------------------- the pairs


def box_of(solution: str) -> str:
    """Content of the last box of a solution, by counting braces."""
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    rest = solution[start:].partition("boxed" if solution.startswith("\\boxed", start) else "fbox")[2].lstrip()
    if not rest.startswith("{"):
        return re.split(r"[$\n]", rest)[0].strip()
    depth, skip = 0, False
    for place, character in enumerate(rest):
        if skip or character == "\\":
            skip = not skip
            continue
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[1:place].strip()
    raise AssertionError(solution[-80:])


def rewritten(answer: str) -> Iterator[tuple[str, str]]:
    """Other spellings of an answer and wrong ones near to it, with what was done."""
    yield "the same", answer
    yield "spaces", answer.replace(",", ", ").replace("+", " + ")
    yield "unit", answer + "\\text{ cm}"
    yield "left side", "x=" + answer
    yield "dfrac", answer.replace("\\frac", "\\dfrac")
    yield "percent", answer + "\\%"
    yield "brackets", f"({answer})"
    yield "negated", f"-{answer}"
    yield "nothing", ""
    if re.fullmatch(r"-?\d+", answer):
        yield "plus 1", str(int(answer) + 1)
        yield "minus 1", str(int(answer) - 1)
        yield "times 100", str(int(answer) * 100)
        yield "decimal", answer + ".0"
        yield "comma", f"{int(answer):,}"
    quotient = re.fullmatch(r"\\frac\{(\d+)\}\{(\d+)\}", answer)
    if quotient:
        top, bottom = int(quotient[1]), int(quotient[2])
        yield "slash", f"{top}/{bottom}"
        yield "decimal", repr(round(top / bottom, 3))
        yield "upside down", f"\\frac{{{bottom}}}{{{top}}}"
        yield "expanded", f"\\frac{{{2 * top}}}{{{2 * bottom}}}"
    if "," in answer and not re.search(r"[\\{}]", answer):
        yield "backwards", ",".join(reversed(answer.strip("()[]").split(",")))


def unread(answer: str) -> Iterator[tuple[str, str]]:
    """Spellings that a tolerant reader takes for the answer, and CorDA's rule mostly does not."""
    yield "words", answer + " inches"
    yield "letters", answer + "cm"
    yield "unit without a blank", answer + "\\text{cm}"
    yield "dollars", f"${answer}$"
    yield "box", f"\\boxed{{{answer}}}"
    yield "open", f"({answer}"
    if answer[:1] in "([" and answer[-1:] in ")]":
        yield "bare", answer[1:-1]
        yield "square", f"[{answer[1:-1]}]"
        yield "round", f"({answer[1:-1]})"
        yield "twice", f"({answer})"


def unread_pairs(count: int) -> list[tuple[str, str, str]]:
    """`count` pairs as of `pairs`, of such spellings; half of them of answers in brackets."""
    golds = [box_of(row["solution"]) for row in rows("math/test")]
    lists = [gold for gold in golds if gold[:1] in "([" and gold[-1:] in ")]" and "," in gold]
    lists += [f"[{gold[1:-1]}]" for gold in lists]
    drawn = random.Random(1)
    found: list[tuple[str, str, str]] = []
    while len(found) < count:
        gold = drawn.choice(lists if len(found) % 2 else golds)
        what, said = drawn.choice([*unread(gold)])
        if (what, said, gold) not in found:
            found.append((what, said, gold))
    return found


def pairs(count: int) -> list[tuple[str, str, str]]:
    """`count` pairs of an answer and MATH's own, with what the answer is: a spelling, or of another problem."""
    golds = [box_of(row["solution"]) for row in rows("math/test")]
    drawn = random.Random(0)
    found: list[tuple[str, str, str]] = []
    while len(found) < count:
        gold = drawn.choice(golds)
        spellings = list(dict.fromkeys(rewritten(gold)))
        what, said = drawn.choice([*spellings, ("of another problem", drawn.choice(golds))])
        if (what, said, gold) not in found:
            found.append((what, said, gold))
    return found


def main() -> None:
    """Print how often the modes agree with the rules, and where they do not."""
    from collections import Counter

    from peftlab.graders import math as grader
    from peftlab.protocols import Example, Prediction

    judges = {"hendrycks": hendrycks, "corda": corda}
    texts = {"math_verify": "\\boxed{%s}", "boxed": "\\boxed{%s}", "corda": "The answer is: %s"}
    cases = pairs(2400)
    differ: Counter[tuple[str, str, str, bool]] = Counter()
    examples: dict[tuple[str, str, str, bool], tuple[str, str]] = {}
    for what, said, gold in cases:
        example = Example(item="pair", reference=f"\\boxed{{{gold}}}")
        for mode, text in texts.items():
            score = bool(grader.grade(Prediction(text=text.replace("%s", said)), example, mode).score)
            for name, judge in judges.items():
                if score != judge(said, gold):
                    differ[mode, name, what, score] += 1
                    examples.setdefault((mode, name, what, score), (said, gold))
    for (mode, name, what, score), count in sorted(differ.items()):
        print(f"{mode:12} {name:10} {what:20} {'grader yes' if score else 'rule yes':10} {count:4}", end="  ")
        print(*examples[mode, name, what, score], sep="  against  ")
    for mode in texts:
        for name in judges:
            wrong = sum(count for key, count in differ.items() if key[:2] == (mode, name))
            print(f"{mode} agrees with {name} on {len(cases) - wrong} of {len(cases)} pairs")


if __name__ == "__main__":
    main()
