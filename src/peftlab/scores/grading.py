"""Predictions to graded samples and metrics. Needs no model and no torch: stored predictions are graded again here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peftlab.config.task import Task
from peftlab.errors import UserError
from peftlab.protocols import Example, Grade, Grader, Prediction, find, metric_name
from peftlab.records.record import Metric

UNDEFINED = "undefined"
"""Note of an evaluation: metrics that the task names and its items do not define (of three classes, F1 of class 1)."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The outcome of one evaluation.

    Attributes:
        metrics: By name, the task's primary one first.
        outcomes: Per metric, one number an item, in the order of `items`.
        clusters: For each item the id that it shares with others of its source, or None; empty: none shares any.
        samples: One JSON-able object an item, enough to read and to grade again.
    """

    metrics: dict[str, Metric]
    outcomes: dict[str, np.ndarray]
    samples: list[dict[str, Any]]
    items: list[str]
    clusters: list[str | None] = field(default_factory=list)
    baselines: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    num_tokens: int | None = None


def grade(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Scored:
    """Grade predictions under every mode of the task's grader. Needs no model."""
    assert task.grader is not None, "plain text is not graded"
    grader: Grader = find("graders", task.grader.name)
    modes = task.grader.modes or grader.modes
    for mode in modes:
        if mode not in grader.modes:
            raise UserError(
                f"task '{task.name}': grader '{task.grader.name}' has no mode '{mode}'",
                fix=f"modes: {', '.join(grader.modes)}",
            )
    grades = {
        mode: [
            grader.grade(prediction, example, mode) for prediction, example in zip(predictions, examples, strict=True)
        ]
        for mode in modes
    }
    outcomes = {
        metric_name(grader, mode): np.array([grade.score for grade in found], dtype=np.float64)
        for mode, found in grades.items()
    }
    summary = dict(grader.summary(grades[modes[0]], examples))
    for name, values in grader.corpus(grades[modes[0]], examples).items():
        if name in task.metrics:
            outcomes[name] = np.array(values, dtype=np.float64)
        else:
            summary[name] = float(np.mean(values))
    undefined = [name for name in task.metrics if name not in outcomes]
    metrics = {name: mean(values, task.metrics.get(name, "higher")) for name, values in outcomes.items()}
    primary_first = sorted(metrics, key=lambda name: (name != task.primary_metric, list(metrics).index(name)))
    return Scored(
        metrics={name: metrics[name] for name in primary_first},
        outcomes=outcomes,
        samples=[
            _sample(example, prediction, {mode: found[index] for mode, found in grades.items()})
            for index, (example, prediction) in enumerate(zip(examples, predictions, strict=True))
        ],
        items=[example.item for example in examples],
        clusters=[example.cluster for example in examples],
        baselines={name: value for name, value in summary.items() if name.startswith("baseline")},
        notes={
            **{name: value for name, value in summary.items() if not name.startswith("baseline")},
            **({UNDEFINED: undefined} if undefined else {}),
            "valid_answers": {mode: sum(grade.valid for grade in found) for mode, found in grades.items()},
        },
        num_tokens=sum(prediction.num_tokens or 0 for prediction in predictions) or None,
    )


def mean(values: np.ndarray, direction: Any) -> Metric:
    """Mean and its standard error over items: s / sqrt(n), with the sample standard deviation."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return Metric(mean=float(values.mean()), standard_error=error, n=len(values), direction=direction)


def _sample(example: Example, prediction: Prediction, grades: Mapping[str, Grade]) -> dict[str, Any]:
    said = {
        name: value
        for name, value in vars(prediction).items()
        if value is not None and value != () and not (name == "scores" and len(value) == 0)
    }
    judged = {
        mode: {"score": found.score, "answer": found.answer, "valid": found.valid} for mode, found in grades.items()
    }
    return {
        "item": example.item,
        **({} if example.cluster is None else {"cluster": example.cluster}),
        "columns": dict(example.columns),
        "reference": example.reference,
        "prediction": said,
        "grades": judged,
    }
