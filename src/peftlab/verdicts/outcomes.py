"""Per-item outcomes of evaluations: read from disk, joined over seeds, and summed up as a score with its interval.

Reads one small array per evaluation, never samples. Compares nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftlab.clusters import Codes, codes_of
from peftlab.records.atomic import safe_name
from peftlab.records.record import Evaluation, Metric
from peftlab.verdicts.statistics import Array, Interval, mean_interval, mean_over_seeds

CLUSTERS = "clusters.json"


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What was scored: a row per seed (one for a bare model), a column per item.

    Attributes:
        matrix: None when nothing was stored, or the seeds were scored on different items.
        items: Digest of the item ids; equal digests are paired.
        missing: Why `matrix` is None.
        clusters: For each item the number of its source; None: no two share one.
    """

    matrix: Array | None
    items: str | None
    missing: str | None = None
    clusters: Codes | None = None


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
    clusters = _clusters(folder / CLUSTERS, evaluation)
    if isinstance(clusters, str):
        return _without(evaluation, clusters)
    return Outcomes(matrix=values[None, :], items=evaluation.items, clusters=clusters)


def _clusters(path: Path, evaluation: Evaluation) -> Codes | str | None:
    """Which items share a source, or what is wrong: items are not taken for independent because a file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        sources = evaluation.notes.get("clusters", evaluation.num_items)
        return None if sources == evaluation.num_items else f"which items share a source is not known ({path} is gone)"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read ({error})"
    if not isinstance(found, list) or len(found) != evaluation.num_items:
        return f"{path} does not hold a source for each of the {evaluation.num_items} items"
    return codes_of([None if name is None else str(name) for name in found])


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
        matrix=np.concatenate([part.matrix for part in parts if part.matrix is not None]),
        items=parts[0].items,
        clusters=shared(parts),
    )


def shared(parts: Sequence[Outcomes]) -> Codes | None:
    """Which items share a source, of outcomes of the same items: as the first says that knows."""
    return next((part.clusters for part in parts if part.clusters is not None), None)


def score(outcomes: Outcomes, metrics: Sequence[Metric]) -> Interval:
    """From the outcomes, or as well as the recorded means allow."""
    if outcomes.matrix is not None:
        return mean_over_seeds(outcomes.matrix, clusters=outcomes.clusters)
    means = [metric.mean for metric in metrics]
    n = metrics[0].n
    if len(means) > 1 and all(map(math.isfinite, means)):
        found = mean_interval(means)
        return Interval(mean=found.mean, low=found.low, high=found.high, n=n, method="t over seeds")
    mean, error = sum(means) / len(means), metrics[0].standard_error
    if len(means) > 1 or error is None or not math.isfinite(mean + error):
        return Interval(mean=mean, low=None, high=None, n=n, method="unknown")
    return Interval(mean=mean, low=mean - 1.96 * error, high=mean + 1.96 * error, n=n, method="recorded standard error")
