"""The tasks of GLUE on their real rows: which rows each part takes, what repeats, and the labels as predictions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import toy
from peftlab.config import loading
from peftlab.errors import UserError
from peftlab.protocols import Example, Prediction
from peftlab.rows import data
from peftlab.scores import grading

MIRROR = Path(os.environ.get("PEFTLAB_MIRROR") or Path(__file__).parents[2] / "shared" / "data")
pytestmark = pytest.mark.skipif(not (MIRROR / "glue").is_dir(), reason=f"no mirror with GLUE at {MIRROR}")

PUBLISHED: dict[str, tuple[int, int, int, float]] = {
    "mrpc": (3668, 408, 1725, 1147 / 1725),
    "cola": (8551, 500, 1043, 721 / 1043),
    "rte": (2490, 250, 277, 146 / 277),
    "wnli": (635, 63, 71, 40 / 71),
    "stsb": (5749, 500, 1500, 0.0),
}
"""Rows of the published training split, of validation and of the test; the share of the most frequent label."""

SLOW: dict[str, tuple[int, int, int, float]] = {
    "sst2": (67349, 1000, 872, 444 / 872),
    "qnli": (8999, 1000, 5463, 2761 / 5463),
}


def rows_of(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, **overrides: Any) -> tuple[Any, data.Rows]:
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    folder = toy.write_experiment(tmp_path)
    spec = loading.load(folder, task=name, overrides=overrides)
    return spec.task, data.load(spec)


def said(example: Example, *, numbers: bool, wrong: bool, classes: int) -> Prediction:
    if numbers:
        return Prediction(value=-example.reference if wrong else example.reference)
    return Prediction(index=(example.reference + wrong) % classes)


def right_and_wrong(task: Any, rows: tuple[Example, ...]) -> list[dict[str, float]]:
    numbers = task.kind == "regress"
    found = []
    for wrong in (False, True):
        predictions = [said(row, numbers=numbers, wrong=wrong, classes=len(task.labels)) for row in rows]
        scored = grading.grade(task, rows, predictions)
        found.append({name: metric.mean for name, metric in scored.metrics.items()})
        assert next(iter(found[-1])) == task.primary_metric and {*task.metrics} == {*found[-1]}
    return found


def the_task_scores_its_own_labels(
    name: str, published: tuple[int, int, int, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **overrides: Any
) -> None:
    task, rows = rows_of(tmp_path, name, monkeypatch, **overrides)
    train, valid, test, majority = published
    drawn = 0 if name == "mrpc" else valid
    assert (len(rows.train), len(rows.valid), len(rows.test)) == (train - drawn, valid, test)
    assert rows.partial == (name == "qnli")
    right, wrong = right_and_wrong(task, rows.test)
    if task.kind == "regress":
        assert right == pytest.approx({"pearson": 1, "spearman": 1, "mse": 0})
        assert wrong["pearson"] == pytest.approx(-1) and wrong["spearman"] == pytest.approx(-1)
    else:
        assert set(right.values()) == {1.0} and wrong["acc"] == 0.0
        assert wrong.get("matthews_correlation", -1) == pytest.approx(-1) and wrong.get("f1", 0) == 0
        first = [Prediction(index=0)] * len(rows.test)
        assert grading.grade(task, rows.test, first).baselines == {"baseline_majority_class": majority}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_task_scores_its_own_labels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    the_task_scores_its_own_labels(name, PUBLISHED[name], tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_larger_task_scores_its_own_labels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = {"data.train_split": "train_subset"} if name == "qnli" else {}
    the_task_scores_its_own_labels(name, SLOW[name], tmp_path, monkeypatch, **overrides)


def test_what_repeats_is_allowed_up_to_what_was_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = rows_of(tmp_path / "1", "cola", monkeypatch)
    assert 0 < rows.facts["overlap"]["exact_items"] <= 16  # of the published rows; some were drawn for validation
    with pytest.raises(UserError, match=r"test items .* stand in the training rows"):
        rows_of(tmp_path / "2", "cola", monkeypatch, **{"data.allow_overlap": 0.01})


def test_items_of_one_premise_share_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = rows_of(tmp_path, "wnli", monkeypatch)
    assert len({row.cluster for row in rows.test}) == 64 and len({row.item for row in rows.test}) == 71
