"""The grader of mathematics: against rules written apart from it, whole benchmarks' gold answers, and what hangs."""

from __future__ import annotations

import importlib.metadata
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import math_rules
import toy
from peftlab.config import loading
from peftlab.config import task as tasks
from peftlab.config.examples import examples
from peftlab.errors import UserError
from peftlab.graders import _math_text, _math_verifier
from peftlab.graders import math as grader
from peftlab.protocols import Example, Grade, Prediction
from peftlab.scores import grading

SETS = {"addsub": 395, "multiarith": 600, "singleeq": 508, "svamp": 1000, "mawps": 238}
needs_mirror = pytest.mark.skipif(
    not (math_rules.MIRROR / "mirror.json").is_file(), reason="no mirror of real data (PEFTLAB_MIRROR)"
)


def grade(text: str, reference: Any, mode: str = "math_verify") -> Grade:
    return grader.grade(Prediction(text=text), Example(item="case", reference=reference), mode)


def score(text: str, reference: Any, mode: str = "math_verify") -> float:
    return grade(text, reference, mode).score


# ---------------------------------------------------------------------------- rules written apart from the grader


@needs_mirror
def test_2400_pairs_are_judged_as_the_rules_of_the_benchmark_have_it() -> None:
    differ = [
        (what, said, gold)
        for what, said, gold in math_rules.pairs(2400)
        if score(f"\\boxed{{{said}}}", f"\\boxed{{{gold}}}", "boxed") != math_rules.hendrycks(said, gold)
    ]
    assert not differ


CORDA_TEXT = 60
"""How many pairs are compared symbolically by default; the slow tier compares all."""


@needs_mirror
@pytest.mark.slow
@pytest.mark.parametrize("count", [CORDA_TEXT, 2400])
def test_pairs_are_judged_as_the_rules_of_corda_have_it(count: int) -> None:
    differ = [
        (what, said, gold)
        for what, said, gold in math_rules.pairs(count)
        if score(f"The answer is: {said}", f"\\boxed{{{gold}}}", "corda") != math_rules.corda(said, gold)
    ]
    assert not differ


@needs_mirror
@pytest.mark.parametrize("count", [16, pytest.param(300, marks=pytest.mark.slow)])
def test_what_cordas_rule_does_not_read_is_not_read(count: int) -> None:
    """Bare lists, words, letters, dollar signs and boxes around the right value."""
    differ = [
        (what, said, gold)
        for what, said, gold in math_rules.unread_pairs(count)
        if score(f"The answer is: {said}", f"\\boxed{{{gold}}}", "corda") != math_rules.corda(said, gold)
    ]
    assert not differ


@pytest.mark.parametrize(
    ("said", "gold"),
    [("1,2", "[1,2]"), ("-2,7", "[-2,7]"), ("5cm", "5"), ("5 inches", "5"), ("$5$", "5"), ("\\boxed{5}", "5")],
)
def test_corda_takes_no_list_for_a_bracketed_one_and_no_letters_for_a_unit(said: str, gold: str) -> None:
    assert not math_rules.corda(said, gold)
    assert score(f"The answer is: {said}", f"\\boxed{{{gold}}}", "corda") == 0


EXPLAINED = {"unit", "left side", "brackets", "backwards", "decimal", "comma", "expanded", "negated"}
"""Where math-verify takes two spellings for one value and the benchmark compares texts (docs/design/mathematics.md)."""


@needs_mirror
@pytest.mark.slow
def test_math_verify_is_never_stricter_than_the_benchmark_and_laxer_where_it_is_explained() -> None:
    for what, said, gold in math_rules.pairs(2400):
        ours, theirs = score(f"\\boxed{{{said}}}", f"\\boxed{{{gold}}}"), math_rules.hendrycks(said, gold)
        assert ours == theirs or (ours > theirs and what in EXPLAINED), (what, said, gold)


# ------------------------------------------------------------------------------------ gold answers and wrong ones


def wrong_ones(answer: str) -> list[str]:
    found = ["", "I do not know.", "\\boxed{}", "\\boxed{\\text{no idea}}", "The answer is:", "\\boxed{" + answer]
    if re.fullmatch(r"-?\d+", answer):
        found += [f"\\boxed{{{int(answer) + 1}}}", f"\\boxed{{{int(answer) - 1}}}"]
        found += [f"\\boxed{{{100 * int(answer)}}}"] if int(answer) else []
    return found


def solutions(count: int | None, *parts: str) -> list[str]:
    found = [row["solution"] for row in math_rules.rows(*parts)]
    return found if count is None else random.Random(1).sample(found, count)


@needs_mirror
@pytest.mark.parametrize("count", [300, pytest.param(None, marks=pytest.mark.full)])
def test_worked_solutions_of_math_score_full_marks(count: int | None) -> None:
    found = solutions(count, "math/train", "math/test")
    assert len(found) == (count or 12_500)
    for solution in found:
        for mode in ("boxed", "math_verify"):
            assert score(solution, solution, mode) == 1, (mode, solution[-100:])


CORDA_CANNOT = {r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}.", r"\frac{7}{5} + \frac{1}{5} i."}
"""Boxes that end in a dot, which CorDA drops of an answer and not of a reference."""


@needs_mirror
@pytest.mark.parametrize("count", [100, pytest.param(None, marks=pytest.mark.full)])
def test_answers_of_math_as_corda_wants_them_declared_score_full_marks(count: int | None) -> None:
    failed = set()
    for solution in solutions(count, "math/train", "math/test"):
        answer = math_rules.box_of(solution)
        if answer and not score(f"It follows.\nThe answer is: {answer}", solution, "corda"):
            failed.add(answer)
    assert failed <= CORDA_CANNOT and (count is not None or failed == CORDA_CANNOT)


@needs_mirror
@pytest.mark.parametrize("count", [40, pytest.param(None, marks=pytest.mark.full)])
def test_wrong_answers_of_math_score_nothing(count: int | None) -> None:
    for solution in solutions(count, "math/test"):
        answer = math_rules.box_of(solution)
        for wrong in wrong_ones(answer):
            for mode in ("boxed", "math_verify"):
                assert score(wrong, solution, mode) == 0, (mode, wrong, answer)


@needs_mirror
def test_the_answers_of_math500_are_those_that_its_solutions_box() -> None:
    for row in math_rules.rows("math500/test"):
        assert score(row["solution"], row["answer"], "boxed") == 1, row["unique_id"]


# ---------------------------------------------------------------------------------------------- the other process


@pytest.mark.slow
def test_what_takes_too_long_is_wrong_counted_and_followed_by_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert score("\\boxed{y+x}", "x+y") == 1
    first = dict(_math_verifier._children)
    monkeypatch.setattr(_math_verifier, "SECONDS", 0.2)
    hung = grade("\\boxed{10^{10^{10}}}", "7")
    assert (hung.score, hung.answer, hung.valid) == (0.0, "10^{10^{10}}", True)
    monkeypatch.undo()
    assert score("\\boxed{b+a}", "a+b") == 1
    assert score("\\boxed{b-a}", "a-b") == 0
    assert all(_math_verifier._children[place].pid != child.pid for place, child in first.items())
    fine = grade("\\boxed{7}", "7")
    assert grader.summary([hung, fine], []) == {"answered": 1.0, "timed_out": 1.0, "failed": 0.0}


def test_one_process_answers_until_it_dies_and_its_death_is_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert score("\\boxed{1+z}", "z+1") == 1
    ((place, child),) = _math_verifier._children.items()
    assert score("\\boxed{2+z}", "z+2") == 1
    assert _math_verifier._children[place] is child
    monkeypatch.setattr(_math_verifier, "_line", lambda asked, seconds: asked.kill() or (asked.wait() and None))
    assert isinstance(found := grade("\\boxed{3+z}", "z+3"), grader.Unverified) and found.trouble == "failed"
    monkeypatch.undo()
    assert score("\\boxed{4+z}", "z+4") == 1


def test_nothing_that_a_model_wrote_is_run(tmp_path: Path) -> None:
    place = tmp_path / "written"
    for text in (
        f"__import__('pathlib').Path('{place}').touch()",
        f"\\boxed{{__import__('pathlib').Path('{place}').touch()}}",
        f"The answer is: __import__('pathlib').Path('{place}').touch()",
    ):
        for mode in ("math_verify", "corda"):
            assert score(text, "7", mode) == 0
    assert not place.exists()


def test_without_the_library_it_is_named_before_anything_is_graded(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    for modes in (("math_verify",), ("boxed", "corda")):
        with pytest.raises(UserError, match=r"math-verify.*\n.*peftlab\[math\]"):
            grader.PLUGIN.check(modes)
    grader.PLUGIN.check(("boxed", "text", "number", "letter", "option"))


def test_a_run_says_so_before_it_loads_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftlab.job import runs
    from peftlab.modelling import models
    from peftlab.records.store import RunStore

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    def load(*args: Any, **settings: Any) -> Any:
        raise AssertionError("a model was loaded")

    task = toy.write_task(tmp_path / "task", grader={"name": "math"}, metrics={"exact_match": "higher"})
    spec = loading.load(toy.write_experiment(tmp_path, task=task))
    monkeypatch.setattr(models, "load", load)
    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(UserError, match="math-verify, which is not installed"):
        runs.run(spec, RunStore(tmp_path / "results"))
    assert RunStore(tmp_path / "results").records() == []


def test_an_evaluation_reports_every_mode_and_what_had_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_math_verifier, "SECONDS", 0.3)
    task = tasks.load("math500")
    rows = examples(task, [{"problem": str(i), "solution": f"$\\boxed{{{i}a}}$."} for i in range(2, 5)])
    said = ["$\\boxed{a+a}$", "$\\boxed{9^{9^{9^{3}}}}!$", "The answer is: 4a"]
    found = grading.grade(task, rows, [Prediction(text=text) for text in said])
    assert {name: metric.mean for name, metric in found.metrics.items()} == {
        "exact_match": pytest.approx(2 / 3),
        "exact_match_boxed": 0,
        "exact_match_corda": pytest.approx(1 / 3),
    }
    assert found.notes["timed_out"] == 1
    assert found.notes["valid_answers"] == {"math_verify": 3, "boxed": 2, "corda": 1}


# --------------------------------------------------------------------------------------------------------- reading


PIECES = [
    "\\boxed{",
    "}",
    "{",
    "\\",
    "$",
    "The answer is: ",
    "####",
    "\\frac",
    "\\sqrt",
    "1",
    "/",
    "=",
    " ",
    "\n",
    "x",
    ".",
]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
@settings(max_examples=300, deadline=None)
def test_reading_never_raises_and_an_answer_is_found_where_it_is_valid(text: str) -> None:
    for mode in ("boxed", "text", "number", "letter", "option"):
        found = grade(text, "C" if mode in ("letter", "option") else "7", mode)
        assert found.valid == (found.answer is not None) and found.score in (0.0, 1.0)


def test_long_texts_take_time_in_proportion() -> None:
    for piece in ("\\boxed{", "answer is ", "{", "\\\\", "$", "\\frac", "= ", "#### "):
        for mode in ("boxed", "text", "number", "letter"):
            grade(piece * 20_000, "A" if mode == "letter" else "7", mode)


@pytest.mark.parametrize("reference", ["", None, True, ["7"], "The answer is:", "\\boxed{"])
def test_a_reference_without_an_answer_is_the_tasks_fault(reference: Any) -> None:
    with pytest.raises(UserError, match="holds no answer"):
        score("\\boxed{7}", reference, "boxed")


def test_a_reference_of_another_kind_is_the_tasks_fault() -> None:
    with pytest.raises(UserError, match="is no number"):
        score("7", "x+1", "number")
    with pytest.raises(UserError, match="no letter from A to E"):
        score("7", "7", "option")


# ----------------------------------------------------------------------------------------------------------- tasks


@needs_mirror
@pytest.mark.parametrize("name", SETS)
def test_the_arithmetic_sets_score_their_own_answers(name: str) -> None:
    task = tasks.load(name)
    assert task.test is not None and task.test.subset is not None
    found = examples(task, math_rules.rows(f"llm_adapters_math/{task.test.subset}/test"))
    assert len(found) == SETS[name]
    for row in found:
        value = float(row.reference)
        said = f"There are 3 of them, so it is {row.reference}.\nThe answer is {value:.4f}."
        assert score(said, row.reference, "number") == 1
        for wrong in (value + 1, value - 1, 100 * value or 100.0):
            assert score(f"The answer is {wrong}.", row.reference, "number") == 0
        assert score("", row.reference, "number") == 0


@needs_mirror
def test_aqua_scores_its_own_letters_and_the_next_ones_not() -> None:
    found = examples(tasks.load("aqua"), math_rules.rows("llm_adapters_math/AQuA/test"))
    assert len(found) == 254
    for row in found:
        following = "ABCDEA"["ABCDE".index(row.reference) + 1]
        assert score(f"It is so. {row.target}", row.reference, "option") == 1
        assert score(f"The answer is ({following}).", row.reference, "option") == 0
        assert score(row.reference, row.reference, "letter") == 1
        assert score(following, row.reference, "letter") == 0


def test_training_rows_of_aqua_are_put_into_the_words_of_its_test() -> None:
    row = {"question": "What is 1 + 1?", "options": ["A)1", "B)2", "C) 3"], "rationale": "It is 2.", "correct": "B"}
    (found,) = examples(tasks.load("aqua"), [row])
    assert "\nWhat is 1 + 1? Answer Choices: (A) 1 (B) 2 (C) 3\n\n### Response:\n" in found.prompt
    assert (found.target, found.reference) == ("It is 2.\nThe answer is (B).", "B")


@needs_mirror
@pytest.mark.parametrize("count", [500, pytest.param(None, marks=pytest.mark.full)])
def test_mathqa_scores_its_own_answers_and_the_other_options_not(count: int | None) -> None:
    from peftlab.tasks._math_qa import options

    rows = math_rules.rows("math_qa/validation", "math_qa/test")
    assert len(rows) == 4475 + 2985
    rows, task = rows[:count], tasks.load("mathqa")
    for row, example in zip(rows, examples(task, rows), strict=True):
        assert score(example.target, example.reference, "text") == 1, example.target[-80:]
        for letter, text in options(row).items():
            if letter != row["correct"] and _math_text.plain(text) != _math_text.plain(example.reference):
                assert score(f"The answer is: {text}", example.reference, "text") == 0


def test_a_rationale_of_mathqa_does_not_end_in_the_letter() -> None:
    row = {
        "Problem": "1 + 1 ?",
        "Rationale": '"it is 1 + 1 = 2 . answer : b ."',
        "options": "a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 1,000",
    }
    (found,) = examples(tasks.load("mathqa"), [{**row, "correct": "b"}])
    assert found.prompt == "Q: 1 + 1 ?\nA:"
    assert found.target == " it is 1 + 1 = 2 .\nThe answer is: 2"


def test_metamath_as_corda_trains_and_asks_it() -> None:
    row = {"query": "What is 1 + 1?", "response": "It is 2.\n#### 2\nThe answer is: 2", "type": "GSM_AnsAug"}
    (trained,) = examples(tasks.load("metamath_corda"), [row])
    (asked,) = examples(tasks.load("gsm8k_corda"), [{"question": "What is 1 + 1?", "answer": "1 + 1 = 2\n#### 2"}])
    assert trained.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWhat is 1 + 1?\n\n### Response:"
    )
    assert trained.target == row["response"]
    assert asked.prompt == trained.prompt + " Let's think step by step."
    for mode in tasks.load("metamath_corda").grader.modes:  # type: ignore[union-attr]
        assert score(trained.target, asked.reference, mode) == 1
        assert score(trained.target.replace("2", "3"), asked.reference, mode) == 0
