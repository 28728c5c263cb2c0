"""Per-item outcomes of evaluations: read from disk, joined over seeds, and summed up as a score with its interval.

Reads one small array per evaluation, never samples. Compares nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftlab.records.atomic import safe_name
from peftlab.records.record import Evaluation, Metric
from peftlab.verdicts.statistics import Array, Interval, mean_interval, mean_over_seeds, run_interval


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What was scored: a row per seed (one for a bare model), a column per item.

    Attributes:
        matrix: None when nothing was stored, or the seeds were scored on different items.
        items: Digest of the item ids; equal digests are paired.
        missing: Why `matrix` is None.
    """

    matrix: Array | None
    items: str | None
    missing: str | None = None


def read(folder: Path | None, evaluation: Evaluation, metric: str) -> Outcomes:
    """The stored outcomes of one evaluation; of a file that is gone or damaged it says so, and goes on."""
    if folder is None:
        return _without(evaluation, "no outcomes per item were stored")
    path = folder / f"{safe_name(metric)}.npy"
    try:
        with open(path, "rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        return _without(evaluation, f"the outcomes per item are gone ({path})")
    except (OSError, ValueError, EOFError) as error:
        return _without(evaluation, f"{path} cannot be read ({error})")
    if values.shape != (evaluation.num_items,) or values.dtype.kind not in "fiub":
        return _without(evaluation, f"{path} does not hold a number for each of the {evaluation.num_items} items")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        return _without(evaluation, "some outcomes are not finite numbers")
    return Outcomes(matrix=values[None, :], items=evaluation.items)


def _without(evaluation: Evaluation, missing: str) -> Outcomes:
    return Outcomes(matrix=None, items=evaluation.items, missing=missing)


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of all seeds, row under row."""
    if len(parts) == 1:
        return parts[0]
    missing = next((part.missing for part in parts if part.matrix is None), None)
    if missing is None and any(part.items is None for part in parts):
        missing = "it is not recorded which items were scored"
    if missing is None and len({part.items for part in parts}) > 1:
        missing = "the seeds were scored on different items"
    if missing is not None:
        return Outcomes(matrix=None, items=None, missing=missing)
    return Outcomes(
        matrix=np.concatenate([part.matrix for part in parts if part.matrix is not None]), items=parts[0].items
    )


def score(outcomes: Outcomes, metrics: Sequence[Metric]) -> Interval:
    """From the outcomes, or as well as the recorded means allow."""
    if outcomes.matrix is not None:
        rows = outcomes.matrix
        return run_interval(rows[0]) if len(rows) == 1 else mean_over_seeds(rows)
    means = [metric.mean for metric in metrics]
    n = metrics[0].n
    if len(means) > 1 and all(map(math.isfinite, means)):
        found = mean_interval(means)
        return Interval(mean=found.mean, low=found.low, high=found.high, n=n, method="t over seeds")
    mean, error = sum(means) / len(means), metrics[0].standard_error
    if len(means) > 1 or error is None or not math.isfinite(mean + error):
        return Interval(mean=mean, low=None, high=None, n=n, method="unknown")
    return Interval(mean=mean, low=mean - 1.96 * error, high=mean + 1.96 * error, n=n, method="recorded standard error")
