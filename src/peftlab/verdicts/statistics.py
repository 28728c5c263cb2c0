"""Intervals and tests on per-item outcomes, for one run, for several seeds, and for two arms on the same items.

Arrays in, plain numbers out; it knows no records and words no claim. All intervals are two-sided, 95 % unless told.
scipy is loaded on first use. Outcomes are scores per item: 0/1 ("binary") or any finite numbers.

What is random: the items are a sample of the questions that the benchmark stands for, and the seeds a sample of the
runs that the method could have given. A difference that is shown is shown for both at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its interval; the bounds are None where the data allow none.

    Attributes:
        method: What the interval is made by and covers: `wilson`, `t over items`, `t over seeds and items`, ...
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    method: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of a - b over the same items, its interval, and the p value of "there is no difference".

    Attributes:
        test: What `p` comes from: `exact McNemar`, `paired t`, `t over seeds and items`.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    test: str


# ---------------------------------------------------------------------------------------------------- one run


def wilson(successes: float, n: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of a share: (k + z^2/2 +- z sqrt(k (n - k) / n + z^2/4)) / (n + z^2).

    It stays inside [0, 1], and is not empty at 0 or n successes. Source: Wilson (1927), "Probable inference, the law of
    succession, and statistical inference", JASA 22.

    Example:
        >>> found = wilson(8, 10)
        >>> round(found.low, 3), round(found.high, 3)
        (0.49, 0.943)
    """
    assert n > 0 and 0 <= successes <= n
    z = _normal_quantile(confidence)
    middle, total = successes + z * z / 2, n + z * z
    half = z * math.sqrt(successes * (n - successes) / n + z * z / 4)
    low, high = max((middle - half) / total, 0.0), min((middle + half) / total, 1.0)
    return Interval(mean=successes / n, low=low, high=high, n=n, method="wilson")


def mean_interval(values: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Student's interval of a mean: m +- t(n - 1) s / sqrt(n), s with the divisor n - 1.

    For binary outcomes `wilson` is better (`run_interval` chooses). One value has a mean and no interval.
    Source: Student (1908), "The probable error of a mean", Biometrika 6.

    Example:
        >>> found = mean_interval([1.0, 2.0, 3.0])
        >>> found.mean, round(found.low, 3), round(found.high, 3)
        (2.0, -0.484, 4.484)
    """
    data = _finite(values)
    mean = float(data.mean())
    if data.size < 2:
        return Interval(mean=mean, low=None, high=None, n=data.size, method="t over items")
    half = _t_quantile(data.size - 1, confidence) * _deviation(data) / math.sqrt(data.size)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=data.size, method="t over items")


def run_interval(values: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """The interval of one run's mean over items: `wilson` for binary outcomes, else `mean_interval`."""
    data = _finite(values)
    if is_binary(data):
        return wilson(float(data.sum()), data.size, confidence=confidence)
    return mean_interval(data, confidence=confidence)


# --------------------------------------------------------------------------------------- two runs, the same items


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test: of `only_a + only_b` items on which two runs disagree, who won how many.

    min(1, 2 P(X <= min(only_a, only_b))) with X binomial(only_a + only_b, 1/2); 1 when they never disagree. Source:
    McNemar (1947), "Note on the sampling error of the difference between correlated proportions", Psychometrika 12;
    the exact form is the sign test, as in `scipy.stats.binomtest`.

    Example:
        >>> mcnemar(9, 1)
        0.021484375
    """
    from scipy import special

    total = only_a + only_b
    return min(1.0, 2 * float(special.bdtr(min(only_a, only_b), total, 0.5))) if total else 1.0


def paired_difference(a: ArrayLike, b: ArrayLike, *, confidence: float = CONFIDENCE) -> Difference:
    """Mean of a - b over items that both runs answered, for these two runs (or these two means of runs).

    Binary outcomes: p by exact McNemar; the interval is Bonett and Price's: with one item added to each kind of
    disagreement, p1 = (only_a + 1) / (n + 2) and p2 = (only_b + 1) / (n + 2), it is p1 - p2 +- z sqrt((p1 + p2 -
    (p1 - p2)^2) / (n + 2)). Student's would have no width when the two never disagree. Source: Bonett and Price
    (2012), "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data", Journal
    of Educational and Behavioral Statistics 37.

    Other outcomes: Student's interval and test of the item differences.

    Example:
        >>> found = paired_difference([1, 1, 1, 0], [0, 0, 1, 0])
        >>> found.mean, found.p
        (0.5, 0.5)
    """
    first, second = _finite(a), _finite(b)
    assert first.shape == second.shape, "paired outcomes have one value an item each"
    n = first.size
    if not (is_binary(first) and is_binary(second)):
        return _from_terms(float((first - second).mean()), [_term(first - second)], n, "paired t", confidence)
    only_a, only_b = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    p1, p2 = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = _normal_quantile(confidence) * math.sqrt((p1 + p2 - (p1 - p2) ** 2) / (n + 2))
    return Difference(
        mean=(only_a - only_b) / n,
        low=max(p1 - p2 - half, -1.0),
        high=min(p1 - p2 + half, 1.0),
        p=mcnemar(only_a, only_b),
        n=n,
        test="exact McNemar",
    )


# ------------------------------------------------------------------------------------------------ several seeds


def mean_over_seeds(outcomes: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """The mean of a method's score over seeds and items; `outcomes` has a row per seed, a column per item.

    se^2 = s^2(seed means) / S + s^2(items of the seed-averaged outcomes) / n, and t with Satterthwaite's degrees of
    freedom for a sum of variances. It is the usual variance of a two-way layout with both factors random, but for one
    thing: noise that belongs to one seed and one item alone (variance v) is in both terms, so it counts as 2 v / (S n)
    where v / (S n) would be right. So the interval is conservative: never too narrow on average, and hardly too wide,
    as that part is small beside the others. With few seeds t is large: three seeds cannot say much about seeds.

    One row: nothing is known about seeds, and the interval is `run_interval`'s, over items only. When every binary
    outcome is equal, no variance can be estimated, and Wilson's interval for n items stands in. Intervals of binary
    outcomes are cut to [0, 1]. Sources: Satterthwaite (1946), "An approximate distribution of estimates of variance
    components", Biometrics Bulletin 2; Searle, Casella and McCulloch, "Variance Components" (1992), chapter 4.
    """
    data = _matrix(outcomes)
    if len(data) == 1:
        return run_interval(data[0], confidence=confidence)
    binary, mean, n = is_binary(data), float(data.mean()), data.shape[1]
    if binary and (mean in (0.0, 1.0)):
        return wilson(mean * n, n, confidence=confidence)
    terms = [_term(data.mean(axis=1)), _term(data.mean(axis=0))]
    found = _from_terms(mean, terms, n, "t over seeds and items", confidence)
    low, high = found.low, found.high
    if binary and low is not None and high is not None:
        low, high = max(low, 0.0), min(high, 1.0)
    return Interval(mean=mean, low=low, high=high, n=n, method="t over seeds and items")


def paired_over_seeds(
    a: ArrayLike, b: ArrayLike, *, seedless_b: bool = False, confidence: float = CONFIDENCE
) -> Difference:
    """Mean of a - b for two methods with several seeds each, scored on the same items.

    se^2 = s^2(seed means of a) / S_a + s^2(seed means of b) / S_b + s^2(item differences of the seed averages) / n,
    and t with Satterthwaite's degrees of freedom: paired in the items, not in the seeds (an equal seed number means
    nothing across methods). Conservative as `mean_over_seeds` is, for the same reason.

    Args:
        a: A row per seed, a column per item.
        b: The same for the other method, or one row.
        seedless_b: `b` depends on no seed (a bare model): its one row has no seed term.
        confidence: Of the interval.
    """
    first, second = _matrix(a), _matrix(b)
    assert first.shape[1] == second.shape[1], "paired outcomes have one value an item each"
    assert len(first) > 1 and (len(second) > 1 or seedless_b), "one seed says nothing about a method"
    difference = first.mean(axis=0) - second.mean(axis=0)
    terms = [_term(first.mean(axis=1)), _term(difference)]
    if not seedless_b:
        terms.append(_term(second.mean(axis=1)))
    return _from_terms(float(difference.mean()), terms, difference.size, "t over seeds and items", confidence)


def holm(p_values: Sequence[float | None], *, family: int | None = None) -> list[float | None]:
    """Holm's adjusted p values: with them, the chance of any false claim in the whole family is at most the level.

    The i-th smallest of m becomes the largest of (m - j + 1) p_j over j <= i, at most 1. None stays None and counts
    for nothing. Source: Holm (1979), "A simple sequentially rejective multiple test procedure", Scandinavian Journal
    of Statistics 6.

    Args:
        p_values: Of the pairs that are reported.
        family: How many pairs there were to choose from, when only some are reported; the others count as p = 1.

    Example:
        >>> holm([0.01, None, 0.04, 0.03])
        [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    size = max(family or 0, len(known))
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min((size - rank) * p, 1.0))
        adjusted[index] = largest
    return adjusted


# ------------------------------------------------------------------------------------------------------- parts


def is_binary(values: Array) -> bool:
    """Whether every value is 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def _from_terms(mean: float, terms: Sequence[tuple[float, int]], n: int, test: str, confidence: float) -> Difference:
    """A t interval and test whose squared standard error is a sum of (variance, degrees of freedom) terms."""
    from scipy import special

    known = [(variance, freedom) for variance, freedom in terms if freedom > 0]
    if len(known) < len(terms):
        return Difference(mean=mean, low=None, high=None, p=None, n=n, test=test)
    total = sum(variance for variance, _ in known)
    if total <= (1e-12 * abs(mean)) ** 2:  # rounding only: every item differs by the same
        return Difference(mean=mean, low=mean, high=mean, p=0.0 if mean else 1.0, n=n, test=test)
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in known)
    error = math.sqrt(total)
    half = _t_quantile(freedom, confidence) * error
    p = 2 * float(special.stdtr(freedom, -abs(mean) / error))
    return Difference(mean=mean, low=mean - half, high=mean + half, p=p, n=n, test=test)


def _term(values: Array) -> tuple[float, int]:
    """The squared standard error of a mean, and its degrees of freedom (0: unknown)."""
    return (_deviation(values) ** 2 / values.size, values.size - 1) if values.size > 1 else (0.0, 0)


def _deviation(values: Array) -> float:
    return float(values.std(ddof=1))


def _finite(values: ArrayLike) -> Array:
    data = np.asarray(values, dtype=np.float64)
    assert data.ndim == 1 and data.size > 0 and np.isfinite(data).all(), "outcomes are finite numbers, one an item"
    return data


def _matrix(values: ArrayLike) -> Array:
    data = np.asarray(values, dtype=np.float64)
    assert data.ndim == 2 and data.size > 0 and np.isfinite(data).all(), "outcomes are finite: a row a seed"
    return data


def _normal_quantile(confidence: float) -> float:
    from scipy import special

    return float(special.ndtri(0.5 + confidence / 2))


def _t_quantile(freedom: float, confidence: float) -> float:
    from scipy import special

    return float(special.stdtrit(freedom, 0.5 + confidence / 2))
