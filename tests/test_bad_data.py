"""Task files, rows and mirrors that cannot be used: exit code 2, a message with the way out, nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import toy
from refusals import Place

# ---------------------------------------------------------------------------------------------------------------- tasks

TASKS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "prompt without a field": ({"prompt": "Question:"}, ("toy.yaml", "'prompt' = 'Question:' lacks a column")),
    "target without a field": ({"target": " yes"}, ("toy.yaml", "'target' = ' yes' lacks a column")),
    "field that is no column": ({"prompt": "{questionn} ="}, ("{questionn}", "'columns': ['answer', 'question']")),
    "field with an attribute": (
        {"prompt": "{question.__class__} ="},
        ("only plain fields like {question}", "{question.__class__}"),
    ),
    "field with an index": ({"prompt": "{question[0]} ="}, ("only plain fields like {question}", "{question[0]}")),
    "field with a width": ({"prompt": "{question:>9999999999}"}, ("only plain fields like {question}",)),
    "field that is not closed": ({"prompt": "{question ="}, ("toy.yaml", "expected '}'")),
    "misspelt key": ({"promt": "{question} ="}, ("unknown key 'promt'", "did you mean 'prompt'?")),
    "column not in the data": (
        {"columns": {"question": "questionn", "answer": "answer"}},
        ("no column 'questionn'", "['answer', 'label', 'question']", "mend 'columns'"),
    ),
    "unknown kind": ({"kind": "generat"}, ("'kind' = \"generat\"", "'generate'")),
    "unknown grader": ({"grader": {"name": "numeri"}}, ("task 'toy'", "grader 'numeri'", "did you mean 'numeric'?")),
    "unknown mode": (
        {"grader": {"name": "numeric", "modes": ["strict", "lose"]}},
        ("task 'toy'", "mode of numeric 'lose'", "flexible, s0, strict"),
    ),
    "metric that nobody measures": (
        {"metrics": {"exact_mach": "higher"}},
        ("task 'toy'", "metric 'exact_mach'", "did you mean 'exact_match'?"),
    ),
    "metric without a direction": ({"metrics": {"exact_match": "up"}}, ("'metrics.exact_match' = \"up\"", "'higher'")),
    "data that is not there": ({"test": {"dataset": "./nosuch", "split": "test"}}, ("test: no data at nosuch",)),
    "folder without ./": (
        {"test": {"dataset": "task", "split": "test"}},
        ("dataset 'task' may mean a hub id", "write ./task"),
    ),
    "split that is not there": (
        {"test": {"dataset": "./task", "split": "tset"}},
        ("no file for split 'tset'", "test.jsonl, train.jsonl, valid.jsonl"),
    ),
    "slice beyond the data": (
        {"train": {"dataset": "./task", "split": "train[:100000]"}},
        ("train: split 'train[:100000]' reaches beyond the data", "40 rows"),
    ),
    "slice of nothing": (
        {"train": {"dataset": "./task", "split": "train[5:5]"}},
        ("split 'train[5:5]' is an empty data set",),
    ),
    "slice that is none": (
        {"train": {"dataset": "./task", "split": "train[a:b]"}},
        ("cannot read the split 'train[a:b]'", "train[:1000]"),
    ),
    "data set of the hub, offline": (
        {"train": {"dataset": "some/where", "split": "train"}},
        ("train: cannot read some/where", "set PEFTLAB_MIRROR"),
    ),
    "label that is not there": (
        {
            "kind": "classify",
            "labels": ["even"],
            "pair": ["question"],
            "reference": "label",
            "columns": {"question": "question", "label": "label"},
            "prompt": None,
            "target": None,
            "max_new_tokens": None,
            "grader": {"name": "label"},
            "metrics": {"acc": "higher"},
        },
        ("'label' = 1 is no index into the 1 labels",),
    ),
}


@pytest.mark.parametrize("case", TASKS)
def test_a_task_that_cannot_be(place: Place, case: str) -> None:
    changes, says = TASKS[case]
    adapter = None if case == "label that is not there" else toy.LORA
    place.refuses("run", place.experiment(task=place.task(**changes), adapter=adapter), says=says)


YAMLS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "a Python object": (b'version: !!python/object/apply:os.mkdir ["made"]\n', ("python/object/apply", "line 1")),
    "a Python object as the whole": (b'!!python/object/new:os.mkdir ["made"]\n', ("python/object/new", "line 1")),
    "a key twice": (b"version: 1\nversion: 1\n", ("key 'version' is given twice", "line 2")),
    "a key that is a list": (b"[1]: 2\n", ("a key is a list", "line 1")),
    "a list": (b"- 1\n", ("holds no mapping",)),
    "nothing": (b"", ("holds no mapping",)),
    "a tab": (b"version: 1\n\tkind: generate\n", ("line 2",)),
    "a number of 5000 digits": (b"version: " + b"9" * 5000 + b"\n", ("Exceeds the limit",)),
    "nested too deep": (b"[" * 500, ("not valid YAML",)),
    "Latin-1": ("description: caf\xe9\n".encode("latin-1"), ("is not UTF-8", "save it as UTF-8")),
    "2 MB": (b"#" * 2_000_000, ("is larger than",)),
    "a name of its own": (b"name: x\n", ("'name' and 'convert' are filled in", "remove")),
}


@pytest.mark.parametrize("case", YAMLS)
def test_a_task_file_that_cannot_be_read_as_meant(place: Place, case: str) -> None:
    content, says = YAMLS[case]
    path = place.task()
    path.write_bytes(content)
    place.refuses("run", place.experiment(task=path), says=("toy.yaml", *says))
    place.refuses("check", path, says=("toy.yaml", *says))
    assert not Path("made").exists()


# ----------------------------------------------------------------------------------------------------------------- rows

ROWS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "no training row": ("train", "", ("train: split 'train' is an empty data set",)),
    "no test row": ("test", "\n", ("test: split 'test' is an empty data set",)),
    "a torn row": ("train", '{"question": "1', ("train.jsonl, line 1", "one JSON object")),
    "a row that is a list": ("valid", "[1]\n", ("valid.jsonl, line 1", "a list, not an object")),
    "a row without its text": ("train", '{"question": null, "answer": "1"}\n', ("column 'question'", "not text")),
    "the test in the training": (
        "test",
        "".join(json.dumps(row) + "\n" for row in (*toy.rows(1), *toy.rows(9, 700))),
        ("1 of 10 test items (10.00%) stand in the training rows", "1.00% is allowed", "data.allow_overlap=0.1"),
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_cannot_be_used(place: Place, case: str) -> None:
    split, content, says = ROWS[case]
    folder = place.experiment()
    Path(f"task/{split}.jsonl").write_text(content)
    place.refuses("run", folder, says=("task 'toy'", *says))


def test_test_items_in_the_training_rows_can_be_accepted(place: Place) -> None:
    folder = place.experiment()
    Path("task/test.jsonl").write_text(ROWS["the test in the training"][1])
    place.runs("run", folder, "data.allow_overlap=0.1", "train.evaluate=none")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_data_that_may_not_be_read(place: Place) -> None:
    folder = place.experiment()
    Path("task/train.jsonl").chmod(0)
    place.refuses("run", folder, says=("train.jsonl", "permission"))


# --------------------------------------------------------------------------------------------------------------- mirror


@pytest.fixture
def mirror(place: Place, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """A mirror that holds the training and a part of the test of the data set some/sums."""
    place.task()
    splits = {"train": "train.jsonl", "valid": "valid.jsonl", "test-part": "test.jsonl"}
    index = {"some/sums": {"folder": ".", "splits": splits, "partial": ["test-part"]}}
    Path("task/mirror.json").write_text(json.dumps(index))
    monkeypatch.setenv("PEFTLAB_MIRROR", str(place.root / "task"))
    return {part: {"dataset": "some/sums", "split": part} for part in ("train", "valid", "test")}


def test_a_split_absent_from_the_mirror(place: Place, mirror: Mapping[str, Any]) -> None:
    task = place.task(**mirror)
    place.refuses(
        "run",
        place.experiment(task=task),
        says=("test: the mirror has no split 'test' of some/sums", "test-part (a part)", "train, valid", "only when"),
    )


def test_a_part_of_a_split_is_used_when_named_and_marks_the_record(place: Place, mirror: Mapping[str, Any]) -> None:
    task = place.task(**{**mirror, "test": {"dataset": "some/sums", "split": "test-part"}})
    assert "part of the data" in place.runs("run", place.experiment(task=task))
    record = json.loads(place.record().read_text())
    assert record["training"]["partial"] is True
    assert all(evaluation["partial"] for evaluation in record["evaluations"])


def test_a_mirror_that_is_none(place: Place, mirror: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place.experiment(task=place.task(**mirror))
    monkeypatch.setenv("PEFTLAB_MIRROR", str(place.root / "nosuch"))
    place.refuses("run", folder, says=("PEFTLAB_MIRROR names", "nosuch", "holds no mirror.json", "unset the variable"))
    monkeypatch.setenv("PEFTLAB_MIRROR", str(place.root / "task"))
    Path("task/mirror.json").write_text('{"some/sums": {"folder": "."}}')
    place.refuses("run", folder, says=("mirror.json", "'some/sums'", "lacks 'folder' or 'splits'"))
    Path("task/mirror.json").write_text("{")
    place.refuses("run", folder, says=("mirror.json is not valid JSON",))
