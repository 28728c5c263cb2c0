"""Every grader against its hand-written cases; numbers as properties; the gold answers of a whole benchmark."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftlab import protocols
from peftlab.errors import UserError
from peftlab.graders import choice, label, numeric
from peftlab.protocols import Example, Grade, Prediction

CASES = Path(__file__).parent / "cases"
ROOT = Path(__file__).parent.parent
MODES = ("strict", "flexible")


# ------------------------------------------------------------------------------------------------------ contract


def cases_of(name: str) -> list[dict[str, Any]]:
    """Those of `name.json`, and of `name_*.json`, whose cases are about some of the modes only."""
    files = [CASES / f"{name}.json", *sorted(CASES.glob(f"{name}_*.json"))]
    return [case for file in files for case in json.loads(file.read_text(encoding="ascii"))]


def grader_modes(name: str) -> tuple[str, ...]:
    modes: tuple[str, ...] = protocols.find("graders", name).modes
    return modes


GRADERS = sorted({*protocols.names("graders")} - {"program"})
"""Whose cases are of one form; a program's are in test_program.py."""


def prediction_of(output: Any) -> Prediction:
    if isinstance(output, str):
        return Prediction(text=output)
    if isinstance(output, list):
        return Prediction(scores=tuple(float(score) for score in output))
    if isinstance(output, dict):
        value = output["value"]
        return Prediction(value=None if value is None else float(value))
    return Prediction(index=output)


def graded(case: dict[str, Any], grader: protocols.Grader) -> Iterator[tuple[str, Grade]]:
    example = Example(item="case", reference=case["target"], choices=tuple(case.get("choices", ())))
    named = [mode for mode in grader.modes if mode in case]
    assert named, "a case says what it expects"
    for mode in named:
        yield mode, grader.grade(prediction_of(case["output"]), example, mode)


@pytest.mark.parametrize("name", GRADERS)
def test_every_grader_agrees_with_its_cases(name: str) -> None:
    grader = protocols.find("graders", name)
    cases = cases_of(name)
    assert len(cases) >= 60
    assert len({json.dumps({**case, "note": ""}) for case in cases}) == len(cases), "a case stands twice"
    wrong = [
        (case, mode, grade)
        for case in cases
        for mode, grade in graded(case, grader)
        if (grade.valid or case[mode] is not None) and grade.score != float(case[mode])
    ]
    assert not wrong
    for mode in grader.modes:
        assert {case[mode] for case in cases if mode in case} >= {True, False}


@pytest.mark.parametrize("name", GRADERS)
def test_every_grader_refuses_an_unknown_mode_and_sums_up_nothing(name: str) -> None:
    grader = protocols.find("graders", name)
    case = cases_of(name)[0]
    example = Example(item="case", reference=case["target"], choices=tuple(case.get("choices", ())))
    with pytest.raises(UserError, match="unknown mode"):
        grader.grade(prediction_of(case["output"]), example, "lenient")
    assert grader.summary([], []) == {}


PARSERS = {"math": grader_modes("math"), "numeric": grader_modes("numeric"), "option": grader_modes("option")}


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, modes in PARSERS.items() for mode in modes])
def test_every_parser_has_sixty_cases_of_its_own(name: str, mode: str) -> None:
    expected = [case[mode] for case in cases_of(name) if mode in case]
    assert len(expected) >= 60 and sum(not one for one in expected) >= len(expected) / 6


def test_cases_are_hard() -> None:
    cases = cases_of("numeric")
    assert len(cases) >= 150
    assert sum(not case.get("strict", True) for case in cases) >= len(cases) / 3
    assert sum("s0" in case for case in cases) >= 20


# ------------------------------------------------------------------------------------------------------- numbers


def score(text: str, reference: Any, mode: str = "strict") -> float:
    return numeric.grade(Prediction(text=text), Example(item="case", reference=reference), mode).score


ARABIC = {ord("0") + digit: chr(0x0660 + digit) for digit in range(10)}


def spellings(number: int) -> list[str]:
    sign, size = ("-" if number < 0 else ""), abs(number)
    unicode_sign = "\u2212" if number < 0 else ""
    return [
        f"{sign}{size}",
        f"{sign}{size:,}",
        f"{sign}${size:,}",
        f"{sign}{size}.00",
        f"{sign}{size:,}.0 apples",
        f"{unicode_sign}{size:,}",
        f"{sign}\\${size}",
        f"**{sign}{size}**",
        f"{sign}{size}%",
        f"{sign}{size}kg.",
        f"{sign}{size}e0",
        f"{sign}\\frac{{{size}}}{{1}}",
        f"{sign}{str(size).translate(ARABIC)}",
    ]


@given(number=st.integers(min_value=-(10**15), max_value=10**15))
@settings(max_examples=60, deadline=None)
def test_every_spelling_of_an_integer_is_that_integer_and_never_the_next(number: int) -> None:
    for spelling in spellings(number):
        for text in (spelling, f"The answer is {spelling}", f"It follows.\n#### {spelling}", f"\\boxed{{{spelling}}}"):
            for mode in MODES:
                assert score(text, number, mode) == 1, (text, mode)
                assert score(text, number + 1, mode) == 0, (text, mode)
                assert score(text, f"Worked.\n#### {number - 1:,}", mode) == 0, (text, mode)


@given(top=st.integers(-(10**6), 10**6), bottom=st.integers(1, 10**4))
@settings(max_examples=100, deadline=None)
def test_fractions_are_exact(top: int, bottom: int) -> None:
    value = Fraction(top, bottom)
    text = numeric.canonical(value)
    assert numeric.strict(text) == numeric.flexible(text) == value
    for mode in MODES:
        assert score(f"The answer is {top}/{bottom}", text, mode) == 1
        assert score(f"The answer is {top}/{bottom}", numeric.canonical(value + Fraction(1, 10**9)), mode) == 0


@given(places=st.integers(0, 20), digits=st.integers(-(10**20), 10**20))
@settings(max_examples=100, deadline=None)
def test_decimals_are_exact(places: int, digits: int) -> None:
    value = Fraction(digits, 10**places)
    text = f"{'-' if digits < 0 else ''}{abs(digits):0{places + 1}d}"
    text = f"{text[:-places]}.{text[-places:]}" if places else text
    assert numeric.strict(text) == numeric.flexible(f"about {text}") == value
    assert numeric.strict(numeric.canonical(value)) == value


WORDS = ["The answer is ", "#### ", "\\boxed{", "\\frac{", "\\text{", "<<", ">>", "23", "10^", "and "]
PIECES = [*WORDS, *"{}()=1,.-/$%^ex \n\\\u00bd\u00b2\u0661\u2212\u2009"]


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=40).map("".join)), st.sampled_from(MODES))
@settings(max_examples=1500, deadline=None)
def test_grading_never_raises_and_keeps_its_word(text: str, mode: str) -> None:
    grade = numeric.grade(Prediction(text=text), Example(item="case", reference="7"), mode)
    assert grade.score in (0.0, 1.0)
    assert grade.valid == (grade.answer is not None)
    assert (grade.score == 1) == (grade.answer == "7")


def test_long_texts_take_time_in_proportion() -> None:
    for piece in ("5 ", "5/", "1,111", "\\frac{", "\\boxed{", "answer is ", "^ ", "((", "5 per a "):
        for mode in MODES:
            score(piece * 20_000, "7", mode)
    score("1" * 100_000, "7", "flexible")


def test_nothing_said_is_invalid() -> None:
    for mode in MODES:
        assert numeric.grade(Prediction(text=None), Example(item="case", reference=7), mode) == Grade(
            score=0.0, answer=None, valid=False
        )


def test_the_answer_is_shown_in_one_spelling() -> None:
    def answer(text: str) -> str | None:
        return numeric.grade(Prediction(text=text), Example(item="case", reference=7), "strict").answer

    assert answer("$1,200.50") == "1200.5"
    assert answer("\\frac{2}{6}") == "1/3"
    assert answer("-0.0") == "0"
    assert answer("-1 1/4") == "-1.25"
    assert answer("2.5e-3") == "0.0025"


@pytest.mark.parametrize(
    "reference", ["no number", "", None, True, "The answer is unknown", "1,2", ["7"], float("nan")]
)
def test_a_reference_without_a_number_is_the_tasks_fault(reference: Any) -> None:
    with pytest.raises(UserError, match="holds no number"):
        score("7", reference)


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=40).map("".join)))
@settings(max_examples=500, deadline=None)
def test_the_rules_of_s0_never_stop_a_grading(text: str) -> None:
    for reference in ("#### 7", text or "7"):
        grade = numeric.grade(Prediction(text=text), Example(item="case", reference=reference), "s0")
        assert grade.valid == (grade.answer is not None) and grade.score in (0.0, 1.0)


def test_the_answer_of_s0_is_the_text_that_it_compares() -> None:
    text = "It is $1,200.\nThe answer is: $1,200. "
    grade = numeric.grade(Prediction(text=text), Example(item="case", reference="#### 1,200"), "s0")
    assert (grade.answer, grade.valid, grade.score) == ("1,200", True, 1.0)
    for reference in (True, None, ["7"]):
        with pytest.raises(UserError, match="holds no number"):
            score("The answer is: 7", reference, "s0")


@pytest.mark.parametrize(
    "reference", [7, 7.0, "7", " 7 ", "-7 + 14 = 7\n#### 7", "So it is.\nThe answer is: 7", "\\boxed{7}"]
)
def test_forms_of_a_reference(reference: Any) -> None:
    assert score("The answer is 7", reference) == 1


def test_summary_counts_what_was_answered() -> None:
    grades = [Grade(score=0.0, answer=None, valid=False), Grade(score=1.0, answer="7", valid=True)]
    assert numeric.summary(grades, []) == {"answered": 0.5}


def mirror() -> Path:
    return Path(os.environ.get("PEFTLAB_MIRROR") or ROOT.parent / "shared" / "data")


@pytest.mark.slow
def test_gold_solutions_score_full_marks_and_wrong_ones_none() -> None:
    files = [mirror() / "gsm8k" / f"{part}.jsonl.gz" for part in ("train", "test")]
    if not all(file.is_file() for file in files):
        pytest.skip("no GSM8K in the mirror folder (PEFTLAB_MIRROR)")
    count = 0
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                solution = json.loads(line)["answer"]
                work, _, last = solution.rpartition("#### ")
                wrong = f"{work}#### {int(last.replace(',', '')) + 1}"
                example = Example(item="case", reference=solution)
                for mode in MODES:
                    assert numeric.grade(Prediction(text=" " + solution), example, mode).score == 1, solution
                    assert numeric.grade(Prediction(text=" " + wrong), example, mode).score == 0, wrong
                count += 1
    assert count == 8792


# ------------------------------------------------------------------------------------------------ choice and label


def test_a_choice_without_scores_is_its_index_but_cannot_be_normalised() -> None:
    example = Example(item="case", reference=1, choices=(" a", " b"))
    assert choice.grade(Prediction(index=1), example, "acc").score == 1
    assert choice.grade(Prediction(), example, "acc") == Grade(score=0.0, answer=None, valid=False)
    with pytest.raises(UserError, match="log-likelihood of every choice"):
        choice.grade(Prediction(index=1), example, "acc_norm")


@pytest.mark.parametrize("reference", [2, -1, None, "1", True, 1.0])
def test_a_reference_that_is_no_choice_is_the_tasks_fault(reference: Any) -> None:
    with pytest.raises(UserError, match="no index into its 2 choices"):
        choice.grade(
            Prediction(scores=(-1.0, -2.0)), Example(item="case", reference=reference, choices=("a", "b")), "acc"
        )


def test_summary_of_choices_shows_collapse() -> None:
    references = [0, 1, 1, 2]
    examples = [Example(item=str(i), reference=gold, choices=("a", "b", "c")) for i, gold in enumerate(references)]
    grades = [choice.grade(Prediction(scores=(-1.0, -5.0, -5.0)), example, "acc") for example in examples]
    assert choice.summary(grades, examples) == {
        "baseline_constant_answer": 0.5,
        "answer_share_0": 1.0,
        "answer_share_1": 0.0,
        "answer_share_2": 0.0,
    }


@pytest.mark.parametrize("reference", [-1, None, "1", 0.5])
def test_a_hidden_label_is_the_tasks_fault(reference: Any) -> None:
    with pytest.raises(UserError, match="is not a class number"):
        label.grade(Prediction(index=0), Example(item="case", reference=reference), "acc")


def summary_of(predicted: list[int | None], labels: list[int]) -> dict[str, float]:
    examples = [Example(item=str(i), reference=gold) for i, gold in enumerate(labels)]
    grades = [
        label.grade(Prediction(index=guess), example, "acc") for guess, example in zip(predicted, examples, strict=True)
    ]
    return dict(label.summary(grades, examples))


def test_summary_of_labels() -> None:
    assert summary_of([1, 1, 1, 0, 0], [1, 1, 0, 1, 0]) == {"baseline_majority_class": 0.6}
    assert summary_of([1, 0, None, 0], [1, 1, 1, 0]) == {"baseline_majority_class": 0.75}
    assert summary_of([0, 0], [0, 0]) == {"baseline_majority_class": 1.0}
    assert summary_of([0, 1, 2], [0, 1, 1]) == {"baseline_majority_class": pytest.approx(2 / 3)}


def test_names_of_metrics() -> None:
    assert protocols.metric_name(numeric.PLUGIN, "strict") == "exact_match"
    assert protocols.metric_name(numeric.PLUGIN, "flexible") == "exact_match_flexible"
    assert protocols.metric_name(choice.PLUGIN, "acc") == "acc"
    assert protocols.metric_name(choice.PLUGIN, "acc_norm") == "acc_norm"
    assert protocols.metric_name(label.PLUGIN, "acc") == "acc"
