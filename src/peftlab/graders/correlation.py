"""Grades a predicted number: `Prediction.value` against the number that is the example's reference.

Metrics:
    mse: The mean of the squared errors; lower is better. Of an item without a finite prediction it is not a number.

Metrics over all items (`corpus`), higher is better:
    pearson: sum (x - mean x) (y - mean y) / sqrt(sum (x - mean x)^2 sum (y - mean y)^2).
    spearman: The same of the ranks, where equal values share the mean of their ranks (GLUE reports both; scipy's
        `pearsonr` and `spearmanr` are what the tests hold them against).

Both are undefined where one side is constant. A model that says the same of every item has found nothing, so it scores
0, and `constant_predictions` is noted. An item without a finite prediction gets the mean of the others, which says
nothing of it.

    baseline_mean_value_mse: The squared error of always saying the mean of the references, which knows no text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftlab.errors import UserError, unknown_name
from peftlab.graders._jackknife import pseudo_values
from peftlab.protocols import Example, Grade, Grader, Prediction

MODES = ("mse",)
METRICS = ("pearson", "spearman")
Array = NDArray[np.float64]
_CELLS = 4_000_000
"""Comparisons of items held in memory at a time."""


# ------------------------------------------------------------------------------------------------------ one item


def _reference(example: Example) -> float:
    reference = example.reference
    if isinstance(reference, (int, float)) and not isinstance(reference, bool) and math.isfinite(reference):
        return float(reference)
    raise UserError(
        f"item {example.item}: the reference {reference!r} is no finite number", fix="mend 'reference' in the task file"
    )


def grade(prediction: Prediction, example: Example, mode: str) -> Grade:
    """The squared error; `answer` is the predicted number as text, exactly."""
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    expected = _reference(example)
    value = prediction.value
    if value is None or not math.isfinite(value):
        return Grade(score=math.nan, answer=None, valid=False)
    error = value - expected
    return Grade(score=error * error, answer=repr(float(value)), valid=True)


def summary(grades: Sequence[Grade], examples: Sequence[Example]) -> Mapping[str, Any]:
    """`baseline_mean_value_mse`, and `constant_predictions` where that is so."""
    if not grades:
        return {}
    predicted, expected = _sides(grades, examples)
    constant = {"constant_predictions": True} if _is_constant(predicted) else {}
    return {"baseline_mean_value_mse": float(expected.var()), **constant}


# ----------------------------------------------------------------------------------------------------- all items


def _sides(grades: Sequence[Grade], examples: Sequence[Example]) -> tuple[Array, Array]:
    """Predictions, with the mean in the place of missing ones, and references."""
    said = np.array([math.nan if grade.answer is None else float(grade.answer) for grade in grades])
    known = said[np.isfinite(said)]
    predicted = np.where(np.isfinite(said), said, known.mean() if len(known) else 0.0)
    return predicted, np.array([_reference(example) for example in examples])


def _is_constant(values: Array) -> bool:
    return bool((values == values[0]).all())


def pearson(first: Array, second: Array) -> float:
    """The correlation; 0 where one side is constant."""
    if _is_constant(first) or _is_constant(second):
        return 0.0
    a, b = first - first.mean(), second - second.mean()
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # squares of very large or small numbers are none
    return float(np.clip((a @ b) / math.sqrt((a @ a) * (b @ b)), -1, 1))


def ranks(values: Array) -> Array:
    """Ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: Array = (ends - (counts - 1) / 2)[places]
    return found


def spearman(first: Array, second: Array) -> float:
    """The correlation of the ranks; 0 where one side is constant."""
    return pearson(ranks(first), ranks(second))


def pearson_without(first: Array, second: Array) -> list[float]:
    """For each item the correlation of all others."""
    everything = np.arange(len(first))
    return _in_blocks(first, second, lambda block: [_kept(values, block, everything) for values in (first, second)])


def spearman_without(first: Array, second: Array) -> list[float]:
    """The same of the ranks, which are counted anew: those above a left-out item move down by one."""
    both = [(values, ranks(values)) for values in (first, second)]
    everything = np.arange(len(first))

    def ranked(block: Array) -> list[Array]:
        return [
            _kept(found, block, everything)
            - _others((values > values[block, None]) + 0.5 * (values == values[block, None]), block, everything)
            for values, found in both
        ]

    return _in_blocks(first, second, ranked)


def _kept(values: Array, block: Any, everything: Any) -> Array:
    """A row for each left-out item of the block: the values of all others."""
    return _others(np.broadcast_to(values, (len(block), len(values))), block, everything)


def _others(rows: Array, block: Any, everything: Any) -> Array:
    found: Array = rows[everything != block[:, None]].reshape(len(block), -1)
    return found


def _in_blocks(first: Array, second: Array, rows_of: Callable[[Any], list[Array]]) -> list[float]:
    count = len(first)
    size = max(1, _CELLS // count)
    found: list[float] = []
    for start in range(0, count, size):
        a, b = rows_of(np.arange(start, min(start + size, count)))
        found += _correlations(a, b).tolist()
    return found


def _correlations(a: Array, b: Array) -> Array:
    """The correlation of each row of `a` with that of `b`; 0 where one is constant."""
    constant = (a == a[:, :1]).all(axis=1) | (b == b[:, :1]).all(axis=1)
    a, b = (side - side.mean(axis=1, keepdims=True) for side in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (side / np.abs(side).max(axis=1, keepdims=True) for side in (a, b))
        found = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.where(constant, 0.0, np.clip(found, -1, 1))


def corpus(grades: Sequence[Grade], examples: Sequence[Example]) -> Mapping[str, Sequence[float]]:
    """Pseudo-values of both correlations."""
    if not grades:
        return {}
    predicted, expected = _sides(grades, examples)
    if len(grades) == 1:
        return {name: [0.0] for name in METRICS}
    return {
        "pearson": pseudo_values(pearson(predicted, expected), pearson_without(predicted, expected)),
        "spearman": pseudo_values(spearman(predicted, expected), spearman_without(predicted, expected)),
    }


PLUGIN = Grader(
    version=1,
    metric="mse",
    modes=MODES,
    grade=grade,
    summary=summary,
    corpus=corpus,
    corpus_metrics=METRICS,
    lower=("mse",),
)
