"""Test items among the training rows: what is an error, what a note, and what published splits are known to share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import toy
from peftlab.config import loading
from peftlab.config import task as tasks
from peftlab.config.examples import examples
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.rows import data, overlap

MIRROR = Path(os.environ.get("PEFTLAB_MIRROR") or Path(__file__).parents[2] / "shared" / "data")
TEMPLATE = "This is a sum. Read it with care, work it out step by step, and write what it comes to behind the colon. "
WORDS = "ann had one red ball and two blue ones and gave bo three of them"


def spec_of(tmp_path: Path, copies: int, *, shared: str = "", **changes: object) -> RunSpec:
    """A hundred test items, so many of them training rows with another answer, in another case and spacing."""
    folder = toy.write_experiment(tmp_path, task=toy.write_task(tmp_path / "task"))
    rows, others = toy.rows(120), toy.rows(100, 900)
    test = [
        {"question": f"  {shared} {rows[n]['question']}\t".upper(), "answer": "0"} if n < copies else others[n]
        for n in range(100)
    ]
    train = [{**row, "question": f"{shared} {row['question']}"} for row in rows]
    for split, found in (("train", train), ("test", test)):
        (tmp_path / "task" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    file = tmp_path / "task" / "toy.yaml"
    written = json.loads(file.read_text())
    file.write_text(json.dumps({**written, "prompt": TEMPLATE + written["prompt"], **changes}))
    return loading.load(folder)


@pytest.mark.parametrize("copies", [0, 1])
def test_up_to_one_item_in_a_hundred_is_recorded(tmp_path: Path, copies: int) -> None:
    rows = data.load(spec_of(tmp_path, copies))
    found = rows.facts["overlap"]
    assert (found["exact"], found["exact_items"], found["allowed"]) == (copies / 100, copies, 0.01)
    assert len(rows.test) == 100 and not rows.facts["notes"]


def test_above_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 of 100 test items \(2\.00%\) stand in .* rows, 1\.00% is allowed"):
        data.load(spec_of(tmp_path, 2))


def test_a_published_splits_own_overlap_is_allowed_up_to_its_figure(tmp_path: Path) -> None:
    assert data.load(spec_of(tmp_path / "a", 2, allow_overlap=0.02)).facts["overlap"]["exact"] == 0.02
    with pytest.raises(UserError, match=r"2\.00% is allowed"):
        data.load(spec_of(tmp_path / "b", 3, allow_overlap=0.02))


def test_the_words_of_the_prompt_are_no_overlap(tmp_path: Path) -> None:
    """The prompt's words are the same in every row, and more than thirteen."""
    assert len(TEMPLATE.split()) > 20
    found = data.load(spec_of(tmp_path, 0)).facts["overlap"]
    assert (found["exact"], found["ngram13"]) == (0, 0)


def test_thirteen_words_in_a_row_are_a_note_and_no_error(tmp_path: Path) -> None:
    assert len(WORDS.split()) == 15
    spec = spec_of(tmp_path, 0, shared=WORDS)
    lines = (tmp_path / "task" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    said = [{**row, "question": f"{WORDS} {row['question']}"} if n < 46 else row for n, row in enumerate(rows)]
    (tmp_path / "task" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    found = data.load(spec)
    assert (found.facts["overlap"]["exact"], found.facts["overlap"]["ngram13"]) == (0, 0.46)
    [note] = found.facts["notes"]
    assert "46 of 100 test items (46.0%) share 13 words in a row with training rows; none is known" in note


@pytest.mark.full
@pytest.mark.skipif(not (MIRROR / "mirror.json").is_file(), reason=f"no mirror at {MIRROR}")
@pytest.mark.parametrize("name", tasks.available())
def test_every_task_knows_what_its_splits_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No error, no note but of known leaks, and no figure that is far from the measured one."""
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    task = tasks.load(name)
    if task.train is None or task.test is None or task.train.generator is not None:
        pytest.skip("its training and test rows are no two published sets")
    spec = loading.load(toy.write_experiment(tmp_path)).model_copy(update={"task": task})
    try:
        rows = data.load(spec)
    except UserError as error:
        if "cannot read" in error.message or "the mirror has no split" in error.message:
            pytest.skip("its rows are not in the mirror")
        raise
    found = rows.facts["overlap"]
    assert [note for note in rows.facts["notes"] if not note.startswith("known leak")] == []
    assert task.allow_overlap <= max(0.01, found["exact"] + 0.005)
    assert task.known_ngram_overlap <= found["ngram13"] + 0.02  # measured without a draw of validation rows


QUESTION = "which of these animals lays its eggs in the sand of a beach"
INSTRUCTION = f"Please choose the correct answer. Question: {QUESTION}? Answer1: turtle Answer2: dog. Format: a/b"


@pytest.mark.parametrize(
    ("items", "others", "found"),
    [
        ([(QUESTION,)], [("x",), (INSTRUCTION, "answer1")], [(0, 1)]),
        ([(QUESTION.upper() + "?!",)], [(INSTRUCTION,)], [(0, 0)]),
        ([(QUESTION, "turtle")], [(INSTRUCTION,)], [(0, 0)]),
        ([(QUESTION, "cat")], [(INSTRUCTION,)], []),
        ([(QUESTION[:-2],)], [(INSTRUCTION,)], []),  # half a word
        ([("eggs in the sand",)], [(INSTRUCTION,)], []),  # four words stand in anything
        ([("",)], [(INSTRUCTION,)], []),
        ([(INSTRUCTION,)], [(QUESTION,)], []),
    ],
)
def test_a_text_stands_in_another_as_a_run_of_words(
    items: list[tuple[str, ...]], others: list[tuple[str, ...]], found: list[tuple[int, int]]
) -> None:
    assert list(overlap.standing(items, others)) == found


@pytest.mark.parametrize("trained", ["question", "instruction"])
def test_an_item_stands_in_the_other_form_of_its_set(tmp_path: Path, trained: str) -> None:
    """Trained on instructions that hold the questions with their options, scored on the questions; and turned round."""
    forms = {}
    for name in ("question", "instruction"):
        columns = {name: name, "answer": "answer"}
        changes: dict[str, Any] = {"columns": columns, "prompt": f"{{{name}}} =", "allow_overlap": 0.05}
        folder = toy.write_experiment(tmp_path / name, task=toy.write_task(tmp_path / name / "task", **changes))
        forms[name] = loading.load(folder).task
    asked = [f"{row['question']} makes what sum in plain decimal digits" for row in toy.rows(100)]
    shown = {
        "question": [{"question": text, "answer": "0"} for text in asked],
        "instruction": [
            {"instruction": f"Choose the right answer. Question: {text}? Answer1: 1 Answer2: 2", "answer": "answer1"}
            for text in asked
        ],
    }
    own, other = forms[trained], forms["instruction" if trained == "question" else "question"]
    learnt = examples(own, shown[trained][:6])
    spec = loading.load(toy.write_experiment(tmp_path / "run"))
    test = data.Rows(test=tuple(examples(other, shown[next(iter(other.columns))])), fingerprints={}, facts={})
    run, asked_of = (spec.model_copy(update={"task": task}) for task in (own, other))
    with pytest.raises(UserError, match="6 of 100 test items of 'toy' stand in the rows that this run was trained on"):
        data.refuse_overlap(asked_of, test, run, trained_on=learnt)
    data.refuse_overlap(asked_of, test, run, trained_on=learnt[:5])
