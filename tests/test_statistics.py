"""Intervals and tests: worked by hand, against scipy, and by simulating what they promise."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from peftlab.verdicts.statistics import (
    Array,
    holm,
    mcnemar,
    mean_interval,
    mean_over_seeds,
    paired_difference,
    paired_over_seeds,
    run_interval,
    wilson,
)

# ------------------------------------------------------------------------------------------------- by hand, by scipy


def test_wilson_by_hand() -> None:
    # k = 8, n = 10, z = 1.959964: (8 + 1.920729 -+ 1.959964 sqrt(1.6 + 0.960365)) / 13.841459
    found = wilson(8, 10)
    assert [found.low, found.high] == pytest.approx([0.49016, 0.94332], abs=1e-5)
    assert (found.mean, found.n, found.method) == (0.8, 10, "wilson")


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (7, 7), (1, 200), (630, 1319), (5, 11), (0, 1), (1, 1)])
def test_wilson_agrees_with_scipy(successes: int, n: int) -> None:
    known = stats.binomtest(successes, n).proportion_ci(method="wilson")
    found = wilson(successes, n)
    assert found.low == pytest.approx(known.low, abs=1e-12)
    assert found.high == pytest.approx(known.high, abs=1e-12)


def test_mean_interval_agrees_with_scipy() -> None:
    values = [1.5, 2.0, -0.5, 4.0, 2.25]
    known = stats.ttest_1samp(values, 0).confidence_interval()
    found = mean_interval(values)
    assert [found.low, found.high] == pytest.approx([known.low, known.high])
    assert mean_interval(values, confidence=0.99).high == pytest.approx(
        stats.ttest_1samp(values, 0).confidence_interval(0.99).high
    )


def test_one_value_has_a_mean_and_no_interval() -> None:
    found = mean_interval([3.5])
    assert (found.mean, found.low, found.high, found.n) == (3.5, None, None, 1)


def test_a_run_of_binary_outcomes_has_wilsons_interval() -> None:
    assert run_interval([1, 1, 0, 1]) == wilson(3, 4)
    assert run_interval([0.5, 1, 0, 1]).method == "t over items"


@pytest.mark.parametrize(("a", "b"), [(0, 0), (9, 1), (1, 9), (5, 5), (6, 0), (130, 97), (1, 0)])
def test_mcnemar_is_the_binomial_test_of_the_disagreements(a: int, b: int) -> None:
    known = stats.binomtest(a, a + b).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(known, rel=1e-12)


def test_paired_difference_of_binary_outcomes_by_hand() -> None:
    # 10 items: 5 won by a alone, 1 by b alone. McNemar: 2 (1 + 6) / 2^6 = 0.21875.
    # Bonett-Price: p1 = 6/12, p2 = 2/12, difference 1/3, variance (8/12 - 1/9) / 12 = 0.0462963, half 0.421717
    a = [1, 1, 1, 1, 1, 0, 1, 1, 0, 0]
    b = [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    found = paired_difference(a, b)
    assert found.p == pytest.approx(0.21875)
    assert (found.mean, found.n, found.test) == (0.4, 10, "exact McNemar")
    assert found.low == pytest.approx(1 / 3 - 0.421717, abs=1e-6)
    assert found.high == pytest.approx(1 / 3 + 0.421717, abs=1e-6)


def test_two_runs_that_never_disagree_are_not_known_to_be_equal() -> None:
    found = paired_difference([1, 0, 1, 1], [1, 0, 1, 1])
    assert found.mean == 0 and found.p == 1
    assert found.low is not None and found.high is not None
    assert found.low < 0 < found.high


def test_paired_difference_of_other_outcomes_is_the_paired_t_test() -> None:
    a, b = [0.3, 1.2, 2.2, 0.9, 1.0], [0.1, 1.3, 1.7, 0.2, 0.8]
    known = stats.ttest_rel(a, b)
    found = paired_difference(a, b)
    assert found.p == pytest.approx(known.pvalue)
    assert found.low == pytest.approx(known.confidence_interval().low)
    assert found.high == pytest.approx(known.confidence_interval().high)
    assert found.test == "paired t"


def test_swapping_the_arms_turns_the_difference_round() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.integers(0, 2, (2, 40))
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert (one.mean, one.low, one.high, one.p) == (-other.mean, -value(other.high), -value(other.low), other.p)
    c, d = generator.normal(size=(2, 3, 40))
    first, second = paired_over_seeds(c, d), paired_over_seeds(d, c)
    assert first.mean == pytest.approx(-second.mean) and first.low == pytest.approx(-value(second.high))
    assert first.p == pytest.approx(second.p)


def test_equal_differences_and_single_items() -> None:
    assert paired_difference([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]).p == 1
    assert paired_difference([1.5, 2.5, 3.5], [0.5, 1.5, 2.5]).p == 0
    assert paired_difference([0.4], [0.1]).p is None


def value(number: float | None) -> float:
    assert number is not None
    return number


# --------------------------------------------------------------------------------------------------- several seeds

# Seed means 0.5 and 0.75, item means 1, 1, 0.5, 0.
TWO_SEEDS = np.array([[1, 1, 0, 0], [1, 1, 1, 0]])


def test_mean_over_seeds_by_hand() -> None:
    # seeds: s^2 = 0.03125, / 2 = 0.015625; items: mean 0.625, s^2 = 0.6875 / 3 = 0.2291667, / 4 = 0.0572917
    # t(1) = 12.7062, t(3) = 3.1824 -> (0.015625 12.7062 + 0.0572917 3.1824) / 0.0729167 = 5.2232; half 1.41042
    found = mean_over_seeds(TWO_SEEDS * 1.0 + 3)
    assert found.mean == pytest.approx(3.625)
    assert value(found.high) - found.mean == pytest.approx(1.41042, abs=1e-4)
    assert found.mean - value(found.low) == pytest.approx(1.41042, abs=1e-4)
    assert found.n == 4 and found.method == "t over seeds and items"


def test_intervals_of_shares_stay_shares() -> None:
    found = mean_over_seeds(TWO_SEEDS)
    assert (found.low, found.high) == (0, 1)


def test_one_seed_is_a_run_and_equal_outcomes_are_one_too() -> None:
    assert mean_over_seeds([[1, 0, 1, 1]]) == run_interval([1, 0, 1, 1])
    assert mean_over_seeds(np.zeros((3, 50))) == wilson(0, 50)
    assert mean_over_seeds(np.ones((3, 50))) == wilson(50, 50)


def test_paired_over_seeds_by_hand() -> None:
    # a: seed means 0.5, 0.75 -> 0.015625; b: seed means 0.25, 0.25 -> 0; Welch's freedom 1.
    # item differences 1, 0.5, 0, 0 -> mean 0.375, s^2 = 0.6875 / 3, / 4 = 0.0572917; the half width as above
    found = paired_over_seeds(TWO_SEEDS, [[0, 1, 0, 0], [0, 0, 1, 0]])
    assert found.mean == pytest.approx(0.375)
    assert value(found.high) - 0.375 == pytest.approx(1.41042, abs=1e-4)
    assert (found.n, found.test) == (4, "t over seeds and items")
    at_p = paired_over_seeds(TWO_SEEDS, [[0, 1, 0, 0], [0, 0, 1, 0]], confidence=1 - value(found.p))
    assert at_p.low == pytest.approx(0, abs=1e-6)


def test_a_bare_model_has_no_seed_term() -> None:
    base = [[0.25, 0.5, 0.0, 0.0]]
    both, without = paired_over_seeds(TWO_SEEDS, base * 2), paired_over_seeds(TWO_SEEDS, base, seedless_b=True)
    assert [both.mean, without.mean] == pytest.approx([0.4375, 0.4375])
    assert value(without.p) == pytest.approx(value(both.p), abs=0.2)
    with pytest.raises(AssertionError, match="one seed"):
        paired_over_seeds(TWO_SEEDS, base)


def test_seeds_that_agree_on_every_item_are_one_run() -> None:
    a, b = [[1, 1, 0, 1, 1, 1]] * 3, [[0, 1, 0, 0, 0, 0]] * 3
    assert paired_over_seeds(a, b) == paired_difference(a[0], b[0])


def test_the_p_value_and_the_interval_agree() -> None:
    generator = np.random.default_rng(2)
    for _ in range(200):
        seeds, items = generator.integers(2, 6), generator.integers(2, 200)
        scale, shift = 10 ** generator.uniform(-2, 2, size=2)
        a = generator.normal(size=(seeds, items)) + scale * generator.normal(size=(seeds, 1))
        b = generator.normal(size=(seeds, items)) + shift * generator.integers(0, 2)
        found = paired_over_seeds(a, b)
        assert (value(found.p) < 0.05) == (value(found.low) * value(found.high) > 0)
        if 1e-6 < value(found.p) < 0.999:
            touching = paired_over_seeds(a, b, confidence=1 - value(found.p))
            assert min(abs(value(touching.low)), abs(value(touching.high))) < 1e-5 * abs(found.mean)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.4]) == [0.8, None, 0.8]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.001, 0.02], family=10) == pytest.approx([0.01, 0.18])


def test_only_finite_outcomes_are_summed_up() -> None:
    for values in ([1.0, math.nan], [1.0, math.inf], []):
        with pytest.raises(AssertionError, match="finite"):
            mean_interval(values)
    with pytest.raises(AssertionError, match="one value an item"):
        paired_difference([1, 0], [1, 0, 1])


def test_importing_takes_no_scipy() -> None:
    code = "import sys, peftlab.verdicts.table; print({'scipy', 'torch', 'pandas', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


# ----------------------------------------------------------------------------------------- what they promise, simulated


def outcomes(generator: np.random.Generator, seeds: int, items: Array, *, seed_noise: float, binary: bool) -> Array:
    """A two-way layout: items that all arms share, an arm's own, seeds, and what belongs to one cell."""
    n = items.size
    values: Array = items + generator.normal(size=(seeds, 1)) * seed_noise + generator.normal(size=(seeds, n)) * 0.5
    values = values + generator.normal(size=n) * 0.5
    return (values > 0).astype(np.float64) if binary else values


def error_rates(
    *, seeds: int, n: int, noise: tuple[float, float], binary: bool, repeats: int, seed: int
) -> tuple[float, float, float]:
    """How often the interval misses, and how often equal arms, or an arm and an equal bare model, are told apart."""
    generator = np.random.default_rng(seed)
    missed = apart = beaten = 0
    for _ in range(repeats):
        items = generator.normal(size=n)
        a = outcomes(generator, seeds, items, seed_noise=noise[0], binary=binary)
        b = outcomes(generator, seeds, items, seed_noise=noise[1], binary=binary)
        bare = outcomes(generator, 1, items, seed_noise=0, binary=binary)
        interval, truth = mean_over_seeds(a), 0.5 if binary else 0.0
        missed += not value(interval.low) <= truth <= value(interval.high)
        apart += value(paired_over_seeds(a, b).p) < 0.05
        beaten += value(paired_over_seeds(a, bare, seedless_b=True).p) < 0.05
    return missed / repeats, apart / repeats, beaten / repeats


# 0.05 and three standard errors of a rate over so many repeats
def limit(repeats: int) -> float:
    return 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)


@pytest.mark.parametrize("noise", [(0.0, 0.0), (0.1, 0.1), (0.5, 0.0)])
def test_three_seeds_keep_the_promised_error_rates(noise: tuple[float, float]) -> None:
    rates = error_rates(seeds=3, n=100, noise=noise, binary=True, repeats=600, seed=3)
    assert max(rates) <= limit(600), rates


def test_single_runs_keep_the_promised_error_rates() -> None:
    generator = np.random.default_rng(4)
    repeats = 2000
    missed = apart = outside = 0
    for _ in range(repeats):
        a, b = generator.random((2, 150)) < generator.random(150) * 0.8
        found, test = wilson(int(a.sum()), 150), paired_difference(a, b)
        missed += not value(found.low) <= 0.4 <= value(found.high)
        apart += value(test.p) < 0.05
        outside += not value(test.low) <= 0 <= value(test.high)
    assert max(missed, apart, outside) / repeats <= limit(repeats)


def test_a_real_difference_is_found() -> None:
    generator = np.random.default_rng(5)
    items = generator.normal(size=500)
    a = outcomes(generator, 3, items + 0.6, seed_noise=0.02, binary=True)
    b = outcomes(generator, 3, items, seed_noise=0.02, binary=True)
    assert value(paired_over_seeds(a, b).p) < 0.01


@pytest.mark.full
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("noise", [(0.0, 0.0), (0.05, 0.05), (0.2, 0.2), (0.5, 0.5), (0.2, 0.0), (0.5, 0.0)])
@pytest.mark.parametrize("n", [50, 200, 1000])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_error_rates_over_the_whole_plane(seeds: int, n: int, noise: tuple[float, float], binary: bool) -> None:
    rates = error_rates(seeds=seeds, n=n, noise=noise, binary=binary, repeats=3000, seed=seeds * n)
    assert max(rates) <= limit(3000) + 0.005, rates
