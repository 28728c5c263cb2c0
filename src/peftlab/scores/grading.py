"""Predictions to graded samples and metrics. Needs no model and no torch: stored predictions are graded again here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peftlab import clusters
from peftlab.config.groups import ExecutionSettings
from peftlab.config.task import Task, direction_of
from peftlab.errors import UserError
from peftlab.events import Progress
from peftlab.protocols import Example, Grade, Grader, Prediction, find, metric_name
from peftlab.records.record import Metric
from peftlab.scores import passing

CLUSTERS = "clusters"
"""Note of an evaluation whose task tells sources of items apart: how many. Standard errors are over them."""
FAILURES = "failures"
"""Note of an evaluation: by mode, the share of answers that failed in each of the ways that the grader tells apart."""
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


def grade(
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    execution: ExecutionSettings | None = None,
) -> Scored:
    """Grade predictions under every mode of the task's grader, as `graded` does, without a word on the way."""
    made = graded(task, examples, predictions, execution)
    while True:
        try:
            next(made)
        except StopIteration as ended:
            scored: Scored = ended.value
            return scored


def ungraded(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Scored:
    """Predictions without grades, to be kept while a grader runs what was answered: no metric, no outcome."""
    return Scored(
        metrics={},
        outcomes={},
        samples=[_sample(example, said, {}) for example, said in zip(examples, predictions, strict=True)],
        items=[example.item for example in examples],
        clusters=[example.cluster for example in examples],
        num_tokens=_num_tokens(predictions),
    )


def graded(
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    execution: ExecutionSettings | None = None,
) -> Generator[Progress, None, Scored]:
    """Grade predictions under every mode of the task's grader. Needs no model.

    Of several answers to an item the outcome is their mean; a metric over all items takes the first of each. What a
    grader runs may use what `execution` says; None: the defaults. Such a grader's progress is told.
    """
    assert task.grader is not None, "plain text is not graded"
    grader: Grader = find("graders", task.grader.name)
    modes = task.grader.modes or grader.modes
    for mode in modes:
        if mode not in grader.modes:
            raise UserError(
                f"task '{task.name}': grader '{task.grader.name}' has no mode '{mode}'",
                fix=f"modes: {', '.join(grader.modes)}",
            )
    limits = execution or ExecutionSettings()
    grades = {}
    for mode in modes:
        grades[mode] = yield from _grades(grader, examples, predictions, mode, limits)
    outcomes = {
        metric_name(grader, mode): np.array([_mean(item) for item in found], dtype=np.float64)
        for mode, found in grades.items()
    }
    outcomes = passing.outcomes(grades, grader, list(task.metrics)) | outcomes
    several = [example for example, item in zip(examples, grades[modes[0]], strict=True) for _ in item]
    summary = dict(grader.summary([grade for item in grades[modes[0]] for grade in item], several))
    for name, values in grader.corpus([item[0] for item in grades[modes[0]]], examples).items():
        if name in task.metrics:
            outcomes[name] = np.array(values, dtype=np.float64)
        else:
            summary[name] = float(np.mean(values))
    undefined = [name for name in task.metrics if name not in outcomes]
    shared = [example.cluster for example in examples]
    metrics = {name: mean(values, direction_of(task, name), shared) for name, values in outcomes.items()}
    primary_first = sorted(metrics, key=lambda name: (name != task.primary_metric, list(metrics).index(name)))
    return Scored(
        metrics={name: metrics[name] for name in primary_first},
        outcomes=outcomes,
        samples=[
            _sample(example, prediction, {mode: found[index] for mode, found in grades.items()})
            for index, (example, prediction) in enumerate(zip(examples, predictions, strict=True))
        ],
        items=[example.item for example in examples],
        clusters=shared,
        baselines={name: value for name, value in summary.items() if name.startswith("baseline")},
        notes={
            **{name: value for name, value in summary.items() if not name.startswith("baseline")},
            **({UNDEFINED: undefined} if undefined else {}),
            "valid_answers": {mode: sum(one.valid for item in found for one in item) for mode, found in grades.items()},
            **({} if len(several) == len(examples) else {"answers": len(several)}),
            **_failures(grades),
            **clusters_note(task, shared),
        },
        num_tokens=_num_tokens(predictions),
    )


def _num_tokens(predictions: Sequence[Prediction]) -> int | None:
    """Tokens of all answers; unknown where one answer's are."""
    counts = [one.num_tokens for said in predictions for one in (said, *said.more)]
    known = [count for count in counts if count is not None]
    return sum(known) or None if len(known) == len(counts) else None


def _grades(
    grader: Grader,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    mode: str,
    execution: ExecutionSettings,
) -> Generator[Progress, None, list[list[Grade]]]:
    """The grades of all answers to each item."""
    pairs = [(one, example) for said, example in zip(predictions, examples, strict=True) for one in (said, *said.more)]
    if grader.grade_all is None:
        found = {number: grader.grade(one, example, mode) for number, (one, example) in enumerate(pairs)}
    else:
        found, said, rows = {}, [one for one, _ in pairs], [example for _, example in pairs]
        for number, one in grader.grade_all(said, rows, mode, execution):
            found[number] = one
            yield Progress(done=len(found), total=len(pairs))
    numbers = iter(range(len(pairs)))
    return [[found[next(numbers)] for _ in (prediction, *prediction.more)] for prediction in predictions]


def _failures(grades: Mapping[str, Sequence[Sequence[Grade]]]) -> dict[str, Any]:
    """By mode the share of all answers that failed in each way, most frequent first, where the grader tells ways."""
    shares = {}
    for mode, items in grades.items():
        ways = Counter(grade.why for item in items for grade in item if grade.why is not None)
        count = sum(len(item) for item in items)
        if ways:
            shares[mode] = {way: number / count for way, number in sorted(ways.items(), key=lambda one: (-one[1], one))}
    return {FAILURES: shares} if shares else {}


def _mean(grades: Sequence[Grade]) -> float:
    return sum(grade.score for grade in grades) / len(grades)


def mean(values: np.ndarray, direction: Any, shared: Sequence[str | None] = ()) -> Metric:
    """Mean and its standard error over items: s / sqrt(n), with the sample standard deviation.

    Where items share sources (`shared`), it is that over sources: see `clusters.squared_error`.
    """
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    codes = clusters.codes_of(shared)
    if codes is not None:
        squared = clusters.squared_error(values, codes)
        error = None if squared is None else math.sqrt(squared)
    return Metric(mean=float(values.mean()), standard_error=error, n=len(values), direction=direction)


def clusters_note(task: Task, shared: Sequence[str | None]) -> dict[str, int]:
    """How many sources the items are from, of a task that tells them apart; without an id an item is its own."""
    if task.cluster is None:
        return {}
    return {CLUSTERS: len({*shared} - {None}) + sum(name is None for name in shared)}


def _sample(example: Example, prediction: Prediction, grades: Mapping[str, Sequence[Grade]]) -> dict[str, Any]:
    return {
        "item": example.item,
        **({} if example.cluster is None else {"cluster": example.cluster}),
        "columns": dict(example.columns),
        "reference": example.reference,
        "prediction": _said(prediction),
        "grades": {mode: _judged(found) for mode, found in grades.items()},
    }


def _said(prediction: Prediction) -> dict[str, Any]:
    plain = {name: value for name, value in vars(prediction).items() if value is not None and value != ()}
    return {**plain, "more": [_said(one) for one in prediction.more]} if prediction.more else plain


def _judged(grades: Sequence[Grade]) -> dict[str, Any]:
    """The grade of the first answer, and with it those of the further ones."""
    plain = [
        {"score": one.score, "answer": one.answer, "valid": one.valid, **({} if one.why is None else {"why": one.why})}
        for one in grades
    ]
    return {**plain[0], **({"more": plain[1:]} if plain[1:] else {})}
