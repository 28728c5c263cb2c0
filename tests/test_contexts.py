"""Choices that stand in the prompt: one ending, behind a context for each choice, as WinoGrande is scored."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import toy
from peftlab.config import loading
from peftlab.config import task as tasks
from peftlab.config.examples import examples
from peftlab.config.settings import validated
from peftlab.config.task import Task
from peftlab.errors import UserError
from peftlab.modelling import models
from peftlab.modelling.models import Built
from peftlab.protocols import Example
from peftlab.rows import data
from peftlab.scores import choosing, grading

ROOT = Path(__file__).parents[1]
SOURCE = {"dataset": "./rows", "split": "test"}
BLANKS: dict[str, Any] = {
    "name": "blanks",
    "version": 1,
    "kind": "choose",
    "test": SOURCE,
    "columns": {"before": "before", "after": "after", "options": "options", "answer": "answer"},
    "prompt": "{before}{choice}",
    "target": " {after}",
    "choices": "options",
    "grader": {"name": "choice", "modes": ["acc"]},
    "metrics": {"acc": "higher"},
}
ROWS = [
    {"before": "The cup did not fit the box as the ", "after": "was big.", "options": ["cup", "box"], "answer": 0},
    {"before": "", "after": "'s cat likes Ann.", "options": ["Bo", "Ann the second"], "answer": 1},
    {"before": "Ann met Bo, and ", "after": ".", "options": ["Ann left", "Bo left", "they left"], "answer": 2},
]


def task(**changes: Any) -> Task:
    return validated(Task, {**BLANKS, **changes}, where="test")


def test_each_choice_has_a_context_and_all_have_one_ending() -> None:
    first, second, _ = examples(task(), ROWS)
    assert first.contexts == (
        "The cup did not fit the box as the cup",
        "The cup did not fit the box as the box",
    )
    assert first.choices == (" was big.", " was big.")
    assert (first.prompt, first.target) == (first.contexts[0], first.choices[0])  # what training shows is the right one
    assert second.contexts == ("Bo", "Ann the second") and second.prompt == "Ann the second"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{before}"}, "'target' = ' {after}' lacks {choice}"),
        ({"target": " and"}, "'target' = ' and' lacks a column"),
        ({"prompt": "{before}{chioce}"}, "'prompt' uses {chioce}"),
        ({"kind": "generate", "choices": "", "prompt": "{choice}"}, "'prompt' uses {choice}"),
    ],
)
def test_a_task_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        task(**changes)
    assert message in caught.value.message


def test_a_column_that_is_called_choice_is_a_column() -> None:
    named = task(columns={**BLANKS["columns"], "choice": "before"}, prompt="{choice}:", target=" {choice}")
    assert not named.names_choice
    assert [one.contexts for one in examples(named, ROWS)] == [(), (), ()]


def test_what_tells_rows_apart_is_the_whole_sentence() -> None:
    """Twins begin alike and have the same options; only their ending differs."""
    assert data.input_columns(task()) == ("before", "options", "after")
    twin = {**ROWS[0], "after": "was small.", "answer": 1}
    texts = data.input_texts(task(), examples(task(), [ROWS[0], twin, ROWS[0]]))
    assert texts[0] != texts[1] and texts[0] == texts[2]


def built_for(tmp_path: Path) -> tuple[Built, Any]:
    spec = loading.load(toy.write_experiment(tmp_path), overrides={"data.max_length": 256})
    spec = spec.model_copy(update={"task": task()})
    return models.bare(models.load(spec.model, "causal")), spec


def likelihood(built: Built, prompt: str, ending: str) -> float:
    """The tokens of the ending behind the prompt, one sum over a whole pass, by nothing but torch."""
    before = len(built.tokenizer(prompt)["input_ids"])
    ids = torch.tensor([built.tokenizer(prompt + ending)["input_ids"]])
    with torch.no_grad():
        logs = built.model(input_ids=ids).logits[0].double().log_softmax(dim=-1)
    return sum(float(logs[place - 1, ids[0, place]]) for place in range(before, ids.shape[1]))


@pytest.mark.parametrize("shots", [0, 2])
def test_the_ending_alone_is_scored_behind_each_context(tmp_path: Path, shots: int) -> None:
    built, spec = built_for(tmp_path)
    rows = examples(spec.task, ROWS)
    worked = "".join(one.prompt + one.target + "\n\n" for one in rows[:shots])
    predictions = toy.drained(choosing.choose(built, rows, spec, rows[:shots]))[0]
    for row, said in zip(rows, predictions, strict=True):
        expected = [likelihood(built, worked + context, row.choices[0]) for context in row.contexts]
        assert list(said.scores) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    graded = grading.grade(spec.task, rows, predictions)
    chosen = [max(range(len(said.scores)), key=lambda place: said.scores[place]) for said in predictions]
    assert graded.metrics["acc"].mean == sum(a == b["answer"] for a, b in zip(chosen, ROWS, strict=True)) / len(ROWS)


# ----------------------------------------------------------------------------------------------------- brought tasks


def sentence(question: str, options: tuple[str, str], answer: int) -> dict[str, Any]:
    text = (
        f"Please choose the correct answer to fill in the blank to complete the given sentence: {question}\n\n"
        f"Option1: {options[0]} Option2: {options[1]} Answer format: option1/option2"
    )
    return {"instruction": text, "answer": f"option{answer + 1}", "output": ""}


def test_winogrande_is_scored_on_what_follows_the_name() -> None:
    found = examples(
        tasks.load("winogrande"),
        [
            sentence("The cup did not fit the box as _ was big.", ("the cup", "the box"), 0),
            sentence("Ann asked Bo in, so _ 's coat got wet.", ("Ann", "Bo"), 1),
        ],
    )
    assert found[0].contexts == (
        "The cup did not fit the box as the cup",
        "The cup did not fit the box as the box",
    )
    assert found[0].choices == (" was big.",) * 2 and found[0].reference == 0
    assert found[1].contexts[1] == "Ann asked Bo in, so Bo" and found[1].target == " 's coat got wet."
    assert found[0].cluster == "the box | the cup | The cup did"


def test_letters_of_listed_options() -> None:
    row = {
        "question": "Where do fish live? ",
        "question_concept": "fish",
        "choices": {"label": list("ABCDE"), "text": ["water", "sky", "sand", "trees", "ice"]},
        "answerKey": "A",
    }
    [found] = examples(tasks.load("commonsense_qa_letters"), [row])
    assert found.prompt == "Question: Where do fish live?\nA. water\nB. sky\nC. sand\nD. trees\nE. ice\nAnswer:"
    assert found.choices == (" A", " B", " C", " D", " E") and found.target == " A" and found.cluster == "fish"
    short = {**row, "choices": {"label": ["A", "B"], "text": ["water", "sky"]}}
    with pytest.raises(UserError, match="no row with five choices"):
        examples(tasks.load("commonsense_qa_letters"), [short])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
@pytest.mark.parametrize("name", ["winogrande", "commonsense_qa_letters"])
def test_choices_are_those_of_lm_evaluation_harness(tmp_path: Path, name: str) -> None:
    """That harness takes the sentences apart by itself; see benchmarks/lm_eval_agreement.py."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    agreement: ModuleType = importlib.import_module("lm_eval_agreement")
    built, spec = built_for(tmp_path)
    rows = [
        sentence(f"Case {n}: the cup was not in the box as _ was {n * 7 % 5} big.", ("a cup", "box"), n % 2)
        for n in range(12)
    ]
    if name != "winogrande":
        texts = [f"option {n}" for n in range(5)]
        rows = [
            {
                "question": f"what is {n}?",
                "question_concept": "",
                "choices": {"label": list("ABCDE"), "text": texts},
                "answerKey": "ABCDE"[n % 5],
            }
            for n in range(12)
        ]
    items: list[Example] = examples(tasks.load(name), json.loads(json.dumps(rows)))
    found = agreement.compared(built, spec, items, tmp_path)
    assert 0 < found.theirs["acc"] < 1  # a score that says something
    assert found.unlike == [] and found.largest < 1e-3
    assert {key: found.ours[key] for key in found.theirs} == pytest.approx(found.theirs, abs=1e-12)
