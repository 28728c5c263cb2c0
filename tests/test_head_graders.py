"""Metrics of classes and numbers over a whole set: hand-worked sets, other libraries, the jackknife by leaving out."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from peftlab.config.settings import validated
from peftlab.config.task import Task, measured_metrics
from peftlab.errors import UserError
from peftlab.graders import correlation, label
from peftlab.graders._jackknife import pseudo_values
from peftlab.protocols import Example, Grade, Grader, Prediction, find
from peftlab.scores import grading

SETS = json.loads((Path(__file__).parent / "cases" / "sets.json").read_text(encoding="ascii"))
RANDOM_SETS = 60
"""Of 40 pairs on average: more than 2 000."""

ROUNDING = 1e-12


def prediction_of(grader: str, said: Any) -> Prediction:
    if said is None:
        return Prediction()
    return Prediction(index=said) if grader == "label" else Prediction(value=float(said))


def graded(grader: str, said: Sequence[Any], references: Sequence[Any]) -> tuple[list[Grade], list[Example]]:
    plugin: Grader = find("graders", grader)
    examples = [Example(item=str(place), reference=one) for place, one in enumerate(references)]
    predictions = [prediction_of(grader, one) for one in said]
    pairs = zip(predictions, examples, strict=True)
    return [plugin.grade(one, example, plugin.modes[0]) for one, example in pairs], examples


def values_of(grader: str, said: Sequence[Any], references: Sequence[Any]) -> dict[str, Sequence[float]]:
    return dict(find("graders", grader).corpus(*graded(grader, said, references)))


def means(found: dict[str, Sequence[float]]) -> dict[str, float]:
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


def number(text: str) -> float:
    """`a`, `a/b` or `a/sqrt(b)`."""
    top, _, below = text.partition("/")
    if below.startswith("sqrt("):
        return int(top) / math.sqrt(int(below[5:-1]))
    return int(top) / int(below or 1)


# ------------------------------------------------------------------------------------------------- other sources


@pytest.mark.parametrize("case", SETS, ids=lambda case: case["note"])
def test_sets_worked_by_hand(case: dict[str, Any]) -> None:
    found = means(values_of(case["grader"], case["predictions"], case["references"]))
    for name, expected in case["expect"].items():
        assert found[name] == pytest.approx(number(expected), abs=ROUNDING), name
    assert set(found) <= set(find("graders", case["grader"]).corpus_metrics)
    if case["grader"] == "label":
        binary = {*case["references"], *case["predictions"]} <= {0, 1, None}
        assert binary == ("f1" in found)


def test_classes_as_scikit_learn_counts_them() -> None:
    rng, pairs = np.random.default_rng(5), 0
    for _ in range(RANDOM_SETS):
        classes, size = int(rng.integers(1, 5)), int(rng.integers(1, 90))
        pairs += size
        labels = rng.integers(0, classes, size).tolist()
        said = [None if rng.random() < 0.05 else int(rng.integers(0, classes)) for _ in range(size)]
        theirs = [-1 if one is None else one for one in said]  # a class that no label has
        present = sorted({*labels, *theirs} - {-1})
        found = means(values_of("label", said, labels))
        with warnings.catch_warnings(action="ignore"):  # of a set with one class
            expected = {"matthews_correlation": sk.matthews_corrcoef(labels, theirs)}
        forms: dict[str, dict[str, Any]] = {
            "_macro": {"labels": present, "average": "macro"},
            "_weighted": {"labels": present, "average": "weighted"},
        }
        if max(present) <= 1:
            forms[""] = {"labels": [1], "average": "macro"}  # the positive class, whether it occurs or not
        for suffix, options in forms.items():
            precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, theirs, zero_division=0, **options)
            expected |= {f"precision{suffix}": precision, f"recall{suffix}": recall, f"f1{suffix}": f1}
        assert found == pytest.approx(expected, abs=ROUNDING), (labels, said)
        assert math.fsum(one.score for one in graded("label", said, labels)[0]) / size == pytest.approx(
            sk.accuracy_score(labels, theirs)
        )
    assert pairs >= 2000


def test_correlations_as_scipy_has_them() -> None:
    rng, pairs = np.random.default_rng(6), 0
    for turn in range(RANDOM_SETS):
        size = int(rng.integers(2, 90))
        truth = rng.normal(size=size).round(1)
        said = (truth * rng.normal() + rng.normal(size=size)).round(turn % 3)  # ties, and few of them
        if len(set(truth)) == 1 or len(set(said)) == 1:
            continue
        found = means(values_of("correlation", said.tolist(), truth.tolist()))
        expected = {"pearson": stats.pearsonr(said, truth)[0], "spearman": stats.spearmanr(said, truth)[0]}
        assert found == pytest.approx(expected, abs=1e-9)
        pairs += size
    assert pairs >= 2000


# ------------------------------------------------------------------------------------------------------ jackknife


def without(values: Sequence[Any], place: int) -> list[Any]:
    return [one for index, one in enumerate(values) if index != place]


@pytest.mark.parametrize("classes", [2, 3])
def test_pseudo_values_of_classes_are_those_of_leaving_out(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels, said = (rng.integers(0, classes, 25).tolist() for _ in range(2))
    found = values_of("label", said, labels)
    shown = range(classes)
    for name, measure in {
        "f1_macro": lambda t, p: sk.f1_score(t, p, labels=shown, average="macro", zero_division=0),
        "f1_weighted": lambda t, p: sk.f1_score(t, p, labels=shown, average="weighted", zero_division=0),
        "matthews_correlation": sk.matthews_corrcoef,
    }.items():
        left = [measure(without(labels, place), without(said, place)) for place in range(25)]
        by_hand(found[name], measure(labels, said), left)


def test_pseudo_values_of_correlations_are_those_of_leaving_out() -> None:
    rng = np.random.default_rng(9)
    truth, said = rng.normal(size=30).round(1).tolist(), rng.normal(size=30).round(1).tolist()
    found = values_of("correlation", said, truth)
    for name, measure in {"pearson": stats.pearsonr, "spearman": stats.spearmanr}.items():
        left = [measure(without(said, place), without(truth, place))[0] for place in range(30)]
        by_hand(found[name], measure(said, truth)[0], left)


def by_hand(found: Sequence[float], whole: float, left: Sequence[float]) -> None:
    """The mean is the metric; the standard error of the mean is Efron's sqrt((n - 1) / n sum (theta(i) - mean)^2)."""
    n, values = len(left), np.array(found)
    assert values.mean() == pytest.approx(whole, abs=ROUNDING)
    expected = math.sqrt((n - 1) / n * ((np.array(left) - np.mean(left)) ** 2).sum())
    assert values.std(ddof=1) / math.sqrt(n) == pytest.approx(expected, abs=1e-10)


def test_of_a_mean_the_pseudo_values_are_the_values() -> None:
    scores = [0.0, 1.0, 0.25, 7.0]
    left = [np.mean(without(scores, place)) for place in range(4)]
    assert pseudo_values(float(np.mean(scores)), [float(one) for one in left]) == pytest.approx(scores)


def test_leaving_out_goes_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=23).round(1), rng.normal(size=23).round(1)
    whole = correlation.spearman_without(a, b), correlation.pearson_without(a, b)
    monkeypatch.setattr(correlation, "_CELLS", 70)
    assert (correlation.spearman_without(a, b), correlation.pearson_without(a, b)) == whole


# ------------------------------------------------------------------------------------------------ within a task


def task(grader: str, metrics: dict[str, str], **changes: Any) -> Task:
    plain = {
        "name": "pairs",
        "version": 1,
        "kind": "classify" if grader == "label" else "regress",
        "test": {"dataset": "some/data", "split": "test"},
        "columns": {"text": "text", "label": "label"},
        "pair": ["text"],
        "reference": "label",
        "grader": {"name": grader},
        "metrics": metrics,
        **({"labels": ["no", "yes"]} if grader == "label" else {}),
    }
    return validated(Task, {**plain, **changes}, where="test")


def test_named_metrics_get_outcomes_and_the_others_stand_in_the_notes() -> None:
    named = task("label", {"f1": "higher", "acc": "higher"})
    assert measured_metrics(named) == ["acc", "f1"]
    predictions = [Prediction(index=one) for one in (1, 1, 1, 0, 0)]
    examples = [Example(item=str(place), reference=one) for place, one in enumerate((1, 1, 0, 1, 0))]
    found = grading.grade(named, examples, predictions)
    assert list(found.metrics) == ["f1", "acc"]
    assert found.metrics["f1"].mean == pytest.approx(2 / 3)
    assert found.metrics["f1"].standard_error is not None and found.metrics["f1"].n == 5
    assert set(found.outcomes) == {"f1", "acc"} and len(found.outcomes["f1"]) == 5
    assert found.notes["matthews_correlation"] == pytest.approx(1 / 6) and "f1" not in found.notes
    assert found.baselines == {"baseline_majority_class": 0.6}


def test_a_metric_that_these_items_do_not_define_is_left_out() -> None:
    named = task("label", {"acc": "higher", "f1": "higher"}, labels=["a", "b", "c"])
    examples = [Example(item=str(place), reference=place) for place in range(3)]
    found = grading.grade(named, examples, [Prediction(index=0)] * 3)
    assert list(found.metrics) == ["acc"] and found.notes[grading.UNDEFINED] == ["f1"]


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'matthews_correlation'"):
        measured_metrics(task("label", {"mathews_correlation": "higher"}))


def test_a_constant_regression_scores_zero_and_says_so() -> None:
    named = task("correlation", {"pearson": "higher", "spearman": "higher", "mse": "lower"})
    examples = [Example(item=str(place), reference=float(place)) for place in range(4)]
    found = grading.grade(named, examples, [Prediction(value=1.5)] * 4)
    assert {name: metric.mean for name, metric in found.metrics.items()} == {"pearson": 0, "spearman": 0, "mse": 1.25}
    assert found.metrics["mse"].direction == "lower"
    assert found.notes["constant_predictions"] is True
    assert found.baselines == {"baseline_mean_value_mse": 1.25}


@pytest.mark.parametrize("reference", [None, "3", math.nan, True])
def test_a_missing_value_is_the_tasks_fault(reference: Any) -> None:
    with pytest.raises(UserError, match="no finite number"):
        correlation.grade(Prediction(value=0.0), Example(item="case", reference=reference), "mse")


def test_nothing_to_sum_up() -> None:
    assert label.corpus([], []) == correlation.corpus([], []) == {}
