"""Stored predictions graded again: without a model, without torch, in place of the old grades or beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toy
from peftlab.config import loading
from peftlab.errors import UserError
from peftlab.events import Evaluated, Event, Finished, Stage
from peftlab.job import evaluating, regrading, runs
from peftlab.records.record import Record, loads
from peftlab.records.store import RunStore
from peftlab.scores import evaluation
from peftlab.verdicts.arms import BareModel
from peftlab.verdicts.compare import compare

ALONE = """
import sys
from peftlab.cli import main
try:
    main(["evaluate", sys.argv[1], "--regrade", "--results", sys.argv[2]])
except SystemExit as ended:
    assert not ended.code, ended.code
loaded = {"torch", "transformers", "peft"} & set(sys.modules)
assert not loaded, loaded
"""


def run(root: Path, **more: Any) -> Record:
    folder = toy.write_experiment(root, train={"max_steps": 1}, **more)
    return runs.run(loading.load(folder), RunStore(root / "results"))


def regrade(record: Record, results: Path, **more: Any) -> list[Event]:
    return list(regrading.regrade(record.key, RunStore(results), **more))


def answered(record: Record, results: Path, answers: list[str]) -> list[Path]:
    """Put other answers into what is stored of the test rows, of the starting model and of the result."""
    store = RunStore(results)
    folders = [store.evaluation_folder(record, one) for one in record.evaluations if one.part == "test"]
    for folder in folders:
        assert folder is not None
        file = folder / "samples.jsonl"
        samples = [loads(line) for line in file.read_text().splitlines()]
        for number, sample in enumerate(samples):
            sample["prediction"]["text"] = answers[number] if number < len(answers) else "none"
        file.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return [folder for folder in folders if folder is not None]


def gold(count: int) -> list[str]:
    return [str(row["answer"]) for row in toy.rows(12, 900)[:count]]


def test_the_grades_are_those_of_the_stored_answers_now(tmp_path: Path) -> None:
    """Three of twelve answers are put right by hand: 0.25, before and after."""
    record, results = run(tmp_path), tmp_path / "results"
    folders = answered(record, results, gold(3))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, record.key, str(results)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "0.25" in done.stdout
    (now,) = RunStore(results).find(record.key)
    scores = [one.metrics["exact_match"].mean for one in now.evaluations if one.part == "test"]
    assert scores == [0.25, 0.25]
    for folder in folders:
        assert np.load(folder / "exact_match.npy").tolist() == [1.0] * 3 + [0.0] * 9
    found = [event for event in regrade(record, results) if isinstance(event, Finished)]
    assert found[-1].record == now  # again is the same


def test_another_grader_stands_beside_the_tasks_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`math_verify` and others have their own tests: here `choice` reads nothing of a text, and says 0."""
    plugin = tmp_path / "package" / "kind_graders.py"
    plugin.parent.mkdir()
    plugin.write_text(
        "from peftlab.protocols import Grade, Grader\n"
        "def grade(prediction, example, mode):\n"
        "    return Grade(score=float(mode == 'kind'), answer=prediction.text, valid=True)\n"
        "KIND = Grader(version=3, metric='hit', modes=('kind', 'strict'), grade=grade)\n"
    )
    monkeypatch.syspath_prepend(str(plugin.parent))
    monkeypatch.setenv("PEFTLAB_PLUGINS", "kind_graders")
    record, results = run(tmp_path), tmp_path / "results"
    before = {one.key: one.metrics for one in record.evaluations}
    events = regrade(record, results, grader="kind_graders:KIND/kind")
    scored = [event.evaluation for event in events if isinstance(event, Evaluated)]
    assert len(scored) == 2
    for one in scored:
        assert list(one.metrics) == [*before[one.key], "kind_hit"] and one.metrics["kind_hit"].mean == 1.0
        assert {name: one.metrics[name] for name in before[one.key]} == before[one.key]
        assert one.notes["also_graded_by"] == {"kind_graders:KIND": 3}
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "score", None)  # they are still the grades that the task asks for
        assert not [
            event for event in evaluating.evaluate(record.key, RunStore(results)) if isinstance(event, Evaluated)
        ]
    store = RunStore(results)
    (now,) = store.find(record.key)
    bases = [BareModel(evaluation=one, folder=folder) for one, folder in store.base_evaluations()]
    (table,) = compare([now], store.evaluation_folder, bases=bases).tables
    assert {base.score.mean for base in table.bases} != {1.0}  # no bar by another measure
    (other,) = compare([now], store.evaluation_folder, metric="kind_hit", bases=bases).tables
    assert [arm.score.mean for arm in other.arms] == [1.0] and other.arms[0].outcomes.matrix is not None
    regrade(record, results)
    (again,) = store.find(record.key)
    assert [one.metrics for one in again.evaluations] == [one.metrics for one in record.evaluations]


def test_draws_and_other_tasks_are_graded_too(tmp_path: Path) -> None:
    record, results = run(tmp_path), tmp_path / "results"
    other = toy.write_task(tmp_path / "other", test=9)
    other = other.rename(other.with_name("other.yaml"))
    asked = {"task": str(other), "overrides": {"data.test_rows": 4}}
    list(evaluating.evaluate(record.key, RunStore(results), **asked))  # type: ignore[arg-type]
    events = regrade(record, results)
    left = [event.text for event in events if isinstance(event, Stage) and event.text.startswith("left")]
    assert left == ["left as it is: of task 'other' no file is known; name it with --task"] * 2
    events = regrade(record, results, task=str(other))
    sizes = [event.evaluation.num_items for event in events if isinstance(event, Evaluated)]
    assert sizes == [4, 4]


def test_predictions_of_rows_that_changed_are_left_as_they_are(tmp_path: Path) -> None:
    record, results = run(tmp_path), tmp_path / "results"
    rows = tmp_path / "task-generate" / "test.jsonl"
    lines = rows.read_text().splitlines()
    before = rows.read_text()
    rows.write_text("\n".join([lines[0].replace("+", "plus"), *lines[1:]]) + "\n")
    events = regrade(record, results)
    assert any(
        "1 items of toy test are not in its rows now" in event.text for event in events if isinstance(event, Stage)
    )
    assert not [event for event in events if isinstance(event, Evaluated)]
    rows.write_text(before)


@pytest.mark.parametrize(
    ("grader", "words"),
    [("numerik", "--grader: unknown grader 'numerik'"), ("numeric/loose", "unknown mode of numeric 'loose'")],
)
def test_an_unknown_grader_is_refused(tmp_path: Path, grader: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        list(regrading.regrade("0000", RunStore(tmp_path / "results"), grader=grader))
