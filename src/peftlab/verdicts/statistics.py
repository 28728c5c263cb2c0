"""Intervals and tests on per-item outcomes, for one run, for several seeds, and for two arms on the same items.

Arrays in, plain numbers out; it knows no records and words no claim. All intervals are two-sided, 95 % unless told.
scipy is loaded on first use. Outcomes are scores per item: 0/1 ("binary") or any finite numbers.

What is random: the items are a sample of the questions that the benchmark stands for, and the seeds a sample of the
runs that the method could have given. A difference that is shown is shown for both at once. Where items share sources
(`clusters`: for each item the number of its source), the sources are what was drawn, and no two items of one are
independent: spreads are those of sources, with one degree of freedom less than there are sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from peftlab.clusters import Codes, count, squared_error
from peftlab.verdicts.clustered import effective_size, sign_flips

Array = NDArray[np.float64]

CONFIDENCE = 0.95
_SMALLEST = 1e-100  # tails below it are reported as it: scipy's quantiles end soon after


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its interval; the bounds are None where the data allow none.

    Attributes:
        n: Items; None where a result from elsewhere does not say it.
        method: What the interval is made by and covers: `wilson`, `t over items`, `t over seeds and items`, ...; with
            `clusters` in the place of items where items share sources.
    """

    mean: float
    low: float | None
    high: float | None
    n: int | None
    method: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of a - b over the same items, its interval, and the p value of "there is no difference".

    Attributes:
        test: What `p` comes from: `exact McNemar`, `paired t`, `t over seeds and items`; where items share sources
            `exact sign flips of clusters`, `paired t over clusters`, `t over seeds and clusters`.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    test: str


# ---------------------------------------------------------------------------------------------------- one run


def wilson(successes: float, n: float, *, confidence: float = CONFIDENCE) -> Interval:
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
    return Interval(mean=successes / n, low=low, high=high, n=round(n), method="wilson")


def mean_interval(values: ArrayLike, *, clusters: Codes | None = None, confidence: float = CONFIDENCE) -> Interval:
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
    low, high = _bounds(mean, (_term(data, clusters),), confidence)
    return Interval(mean=mean, low=low, high=high, n=data.size, method=f"t over {_drawn(clusters)}")


def run_interval(values: ArrayLike, *, clusters: Codes | None = None, confidence: float = CONFIDENCE) -> Interval:
    """The interval of one run's mean over items: `wilson` for binary outcomes, else `mean_interval`.

    Where items share sources, Wilson's is that of as many independent items as they are worth (`effective_size`).
    """
    data = _finite(values)
    if not is_binary(data):
        return mean_interval(data, clusters=clusters, confidence=confidence)
    if clusters is None:
        return wilson(float(data.sum()), data.size, confidence=confidence)
    mean, size = float(data.mean()), effective_size(data, clusters, confidence=confidence)
    if size is None:
        return Interval(mean=mean, low=None, high=None, n=data.size, method="unknown: a single cluster")
    found = wilson(mean * size, size, confidence=confidence)
    return replace(found, mean=mean, n=data.size, method="wilson over clusters")


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
    total = only_a + only_b
    return min(1.0, 2 * float(_special().bdtr(min(only_a, only_b), total, 0.5))) if total else 1.0


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, clusters: Codes | None = None, confidence: float = CONFIDENCE
) -> Difference:
    """Mean of a - b over items that both runs answered, for these two runs (or these two means of runs).

    Binary outcomes: p by exact McNemar; the interval is Bonett and Price's: with one item added to each kind of
    disagreement, p1 = (only_a + 1) / (n + 2) and p2 = (only_b + 1) / (n + 2), it is p1 - p2 +- z sqrt((p1 + p2 -
    (p1 - p2)^2) / (n + 2)). Student's would have no width when the two never disagree. Source: Bonett and Price
    (2012), "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data", Journal
    of Educational and Behavioral Statistics 37.

    Other outcomes: Student's interval and test of the item differences.

    Where items share sources: p by `sign_flips` for binary outcomes, and shares of as many independent items as the
    differences are worth in Bonett and Price's interval; for others the spread of sources.

    Example:
        >>> found = paired_difference([1, 1, 1, 0], [0, 0, 1, 0])
        >>> found.mean, found.p
        (0.5, 0.5)
    """
    first, second = _finite(a), _finite(b)
    assert first.shape == second.shape, "paired outcomes have one value an item each"
    n = first.size
    if not (is_binary(first) and is_binary(second)):
        test = "paired t" if clusters is None else "paired t over clusters"
        return _difference(float((first - second).mean()), (_term(first - second, clusters),), n, test, confidence)
    only_a, only_b = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    p, test, size = mcnemar(only_a, only_b), "exact McNemar", float(n)
    if clusters is not None:
        p, test = sign_flips(_sums(first - second, clusters)), "exact sign flips of clusters"
        worth = effective_size(first - second, clusters, confidence=confidence)
        if worth is None:
            return Difference(mean=(only_a - only_b) / n, low=None, high=None, p=None, n=n, test=test)
        size = worth
    p1, p2 = (only_a * size / n + 1) / (size + 2), (only_b * size / n + 1) / (size + 2)
    half = _normal_quantile(confidence) * math.sqrt((p1 + p2 - (p1 - p2) ** 2) / (size + 2))
    low, high = max(p1 - p2 - half, -1.0), min(p1 - p2 + half, 1.0)
    return Difference(mean=(only_a - only_b) / n, low=low, high=high, p=p, n=n, test=test)


# ------------------------------------------------------------------------------------------------ several seeds


def mean_over_seeds(outcomes: ArrayLike, *, clusters: Codes | None = None, confidence: float = CONFIDENCE) -> Interval:
    """The mean of a method's score over seeds and items; `outcomes` has a row per seed, a column per item.

    se^2 = s^2(seed means) / S + s^2(items of the seed-averaged outcomes) / n: the variance of a two-way layout whose
    two factors are random, but for one thing. Noise that belongs to one seed and one item alone (variance v) is in both
    terms and counts as 2 v / (S n), where v / (S n) would be right: the interval is conservative, by a part that is
    small beside the others. The quantile is Cochran's, (v_s t(S - 1) + v_i t(n - 1)) / (v_s + v_i) for the two terms,
    because one t with Satterthwaite's degrees of freedom is too short for three seeds (simulated: 92 % for 95 %, and
    88 % for two). t(2) is 4.3: three seeds cannot say much about seeds.

    One row: nothing is known about seeds, and the interval is `run_interval`'s, over items only. When every binary
    outcome is equal, no variance can be estimated, and Wilson's interval for n items stands in. Intervals of binary
    outcomes are cut to [0, 1]. Sources: Searle, Casella and McCulloch (1992), "Variance Components", chapter 4; Cochran
    and Cox (1957), "Experimental Designs", section 4.14.
    """
    data = _matrix(outcomes)
    if len(data) == 1:
        return run_interval(data[0], clusters=clusters, confidence=confidence)
    binary, mean, n = is_binary(data), float(data.mean()), data.shape[1]
    if binary and (mean in (0.0, 1.0)):
        return run_interval(data[0], clusters=clusters, confidence=confidence)
    terms = (_term(data.mean(axis=1)), _term(data.mean(axis=0), clusters))
    low, high = _bounds(mean, terms, confidence)
    if binary and low is not None and high is not None:
        low, high = max(low, 0.0), min(high, 1.0)
    return Interval(mean=mean, low=low, high=high, n=n, method=f"t over seeds and {_drawn(clusters)}")


def paired_over_seeds(
    a: ArrayLike,
    b: ArrayLike,
    *,
    seedless_b: bool = False,
    clusters: Codes | None = None,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Mean of a - b for two methods with several seeds each, scored on the same items.

    se^2 = s^2(seed means of a) / S_a + s^2(seed means of b) / S_b + s^2(item differences of the seed averages) / n:
    paired in the items, not in the seeds (an equal seed number means nothing across methods). Conservative, and with
    Cochran's quantile, as `mean_over_seeds`; the degrees of freedom of the two seed terms together are Welch's. p is
    the level at which the interval would just touch 0. When the seeds of each method agree on every item, each method
    is one run, and `paired_difference` says more. Source of the degrees of freedom: Welch (1947), "The generalization
    of `Student's' problem when several different population variances are involved", Biometrika 34.

    Args:
        a: A row per seed, a column per item.
        b: The same for the other method, or one row.
        seedless_b: `b` depends on no seed (a bare model): its one row has no seed term.
        clusters: For each item the number of its source; None: no two share one.
        confidence: Of the interval.
    """
    first, second = _matrix(a), _matrix(b)
    assert first.shape[1] == second.shape[1], "paired outcomes have one value an item each"
    assert len(first) > 1 and (len(second) > 1 or seedless_b), "one seed says nothing about a method"
    mean_a, mean_b = first.mean(axis=0), second.mean(axis=0)
    if is_binary(mean_a) and is_binary(mean_b):
        return paired_difference(mean_a, mean_b, clusters=clusters, confidence=confidence)
    difference = mean_a - mean_b
    seeds = _term(first.mean(axis=1))
    if not seedless_b:
        seeds = _welch(seeds, _term(second.mean(axis=1)))
    mean, terms = float(difference.mean()), (seeds, _term(difference, clusters))
    return _difference(mean, terms, difference.size, f"t over seeds and {_drawn(clusters)}", confidence)


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


@dataclass(frozen=True)
class _Term:
    """A part of a squared standard error, and its degrees of freedom (0: it cannot be estimated)."""

    variance: float
    freedom: float


def _drawn(clusters: Codes | None) -> str:
    return "items" if clusters is None else "clusters"


def _sums(values: Array, clusters: Codes) -> Array:
    return np.bincount(clusters, weights=values).astype(np.float64)


def _term(values: Array, clusters: Codes | None = None) -> _Term:
    """The squared standard error of a mean."""
    if clusters is not None:
        found = squared_error(values, clusters)
        return _Term(0.0, 0) if found is None else _Term(found, count(clusters) - 1)
    return _Term(float(values.var(ddof=1)) / values.size, values.size - 1) if values.size > 1 else _Term(0.0, 0)


def _welch(a: _Term, b: _Term) -> _Term:
    total = a.variance + b.variance
    if not total:
        return _Term(0.0, a.freedom + b.freedom)
    share = a.variance / total
    return _Term(total, 1 / (share**2 / a.freedom + (1 - share) ** 2 / b.freedom))


def _bounds(mean: float, terms: Sequence[_Term], confidence: float) -> tuple[float | None, float | None]:
    """The t interval of a mean whose squared standard error is a sum of terms."""
    if any(term.freedom == 0 for term in terms):
        return None, None
    half = _quantile(terms, (1 - confidence) / 2) * _error(terms)
    return mean - half, mean + half


def _difference(mean: float, terms: Sequence[_Term], n: int, test: str, confidence: float) -> Difference:
    low, high = _bounds(mean, terms, confidence)
    p = None if low is None else _p_value(terms, mean)
    return Difference(mean=mean, low=low, high=high, p=p, n=n, test=test)


def _error(terms: Sequence[_Term]) -> float:
    return math.sqrt(sum(term.variance for term in terms))


def _quantile(terms: Sequence[_Term], tail: float) -> float:
    """The t beyond which `tail` lies: Cochran's average of the terms' own, weighted by their variances."""
    stdtrit = _special().stdtrit
    weights = [(term.variance, float(stdtrit(term.freedom, tail))) for term in terms if term.variance]
    total = sum(variance for variance, _ in weights)
    return -sum(variance * t for variance, t in weights) / total if total else 0.0


def _p_value(terms: Sequence[_Term], mean: float) -> float:
    """The two-sided level at which the interval just touches 0."""
    error = _error(terms)
    if error <= 1e-12 * abs(mean):  # rounding only: every item differs by the same
        return 0.0 if mean else 1.0
    t = abs(mean) / error
    tails = [float(_special().stdtr(term.freedom, -t)) for term in terms if term.variance]
    low, high = max(min(tails), _SMALLEST), max(*tails, _SMALLEST)
    if high - low <= 1e-9 * high:
        return 2 * high
    return 2 * math.exp(_root(lambda x: math.log(_quantile(terms, math.exp(x)) / t), math.log(low), math.log(high)))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that is positive at `low` and negative at `high` is 0: regula falsi, Illinois form."""
    at_low, at_high, side = function(low), function(high), 0
    x = low
    while high - low > 1e-9 and at_low > 0 > at_high:
        x = (low * at_high - high * at_low) / (at_high - at_low)
        value = function(x)
        if abs(value) < 1e-12:
            return x
        if value > 0:
            low, at_low, at_high, side = x, value, at_high / 2 if side > 0 else at_high, 1
        else:
            high, at_high, at_low, side = x, value, at_low / 2 if side < 0 else at_low, -1
    return x


def _finite(values: ArrayLike) -> Array:
    data = np.asarray(values, dtype=np.float64)
    assert data.ndim == 1 and data.size > 0 and np.isfinite(data).all(), "outcomes are finite numbers, one an item"
    return data


def _matrix(values: ArrayLike) -> Array:
    data = np.asarray(values, dtype=np.float64)
    assert data.ndim == 2 and data.size > 0 and np.isfinite(data).all(), "outcomes are finite: a row a seed"
    return data


@cache
def _normal_quantile(confidence: float) -> float:
    return float(_special().ndtri(0.5 + confidence / 2))


@cache
def _special() -> Any:
    from scipy import special

    return special
