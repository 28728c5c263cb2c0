"""Items that share a source (a passage, a template): which do, and how exact a mean over them is.

Such items are no independent draws: what they have in common is drawn once. Ids and arrays in, numbers out; what an
interval or a test makes of it is said in `verdicts/`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
"""For each item the number of its source."""


def codes_of(clusters: Sequence[str | None]) -> Codes | None:
    """For each item the number of its source, in the order of appearance; None where no two items share one.

    An item without an id is a source of its own.

    Example:
        >>> codes_of(["a", None, "a", None]).tolist()
        [0, 1, 0, 2]
        >>> codes_of(["a", "b", None]) is None
        True
    """
    seen: dict[object, int] = {}
    codes = [seen.setdefault(place if name is None else name, len(seen)) for place, name in enumerate(clusters)]
    return np.array(codes, dtype=np.int64) if len(seen) < len(codes) else None


def count(codes: Codes) -> int:
    """How many sources there are."""
    return int(codes.max()) + 1


def squared_error(values: NDArray[np.float64], codes: Codes) -> float | None:
    """The squared standard error of the mean of items, where only those of different sources are independent.

    G / (G - 1) * sum over the G sources of (sum of their items' deviations from the mean)^2 / n^2: the spread of the
    sums of sources. It is Miller's clustered standard error (2024, Adding Error Bars to Evals, arXiv 2411.00640,
    section 2.2), sqrt(SE^2 + sum over sources, over pairs i != j in them, of deviation_i deviation_j / n^2) with SE
    that of independent items, but for what is lost to the mean: there n / (n - 1) on the squares alone, here
    G / (G - 1) on the whole, as in regression with clusters (Cameron and Miller 2015, A Practitioner's Guide to
    Cluster-Robust Inference, Journal of Human Resources 50), so that few sources are not taken for exact. Where no two
    items share a source, all three are s^2 / n. None of a single source, whose spread is unknown.

    Example:
        >>> squared_error(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1]))
        0.25
    """
    groups = count(codes)
    if groups < 2:
        return None
    sums = np.bincount(codes, weights=values - values.mean())
    return float(groups / (groups - 1) * (sums**2).sum() / values.size**2)
