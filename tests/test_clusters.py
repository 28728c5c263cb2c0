"""Items that share a source: by hand, against other formulas, by resampling, and from an evaluation to a claim."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from peftlab.clusters import codes_of, count, squared_error
from peftlab.config.settings import validated
from peftlab.config.task import Task
from peftlab.protocols import Example, Prediction
from peftlab.scores import grading
from peftlab.verdicts.clustered import effective_size, sign_flips
from peftlab.verdicts.statistics import (
    mcnemar,
    mean_interval,
    mean_over_seeds,
    paired_difference,
    paired_over_seeds,
    run_interval,
    wilson,
)
from verdict_material import NUM_ITEMS, Lab, between

GROUPS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
VALUES = np.array([1.0, 1, 0, 0, 0, 1, 1, 1, 0, 1])
ALONE = np.arange(10)


def blocks(generator: np.random.Generator, groups: int, size: int, shared: float) -> tuple[Any, Any]:
    """Binary outcomes of sources of equal size, an item like its source's first one with some probability."""
    codes = np.repeat(np.arange(groups), size)
    one, own = generator.random(groups) < 0.6, generator.random(codes.size) < 0.6
    return np.where(generator.random(codes.size) < shared, one[codes], own).astype(np.float64), codes


# --------------------------------------------------------------------------------------------------------- by hand


def test_which_items_share_a_source() -> None:
    codes = codes_of(["b", None, "a", "b", None, "a"])
    assert codes is not None and codes.tolist() == [0, 1, 2, 0, 3, 2] and count(codes) == 4
    assert codes_of([]) is None and codes_of([None, None]) is None and codes_of(["a", "b", None]) is None


def test_the_squared_error_by_hand() -> None:
    # Mean 0.6. Sums of deviations: 0.4 + 0.4 - 0.6 = 0.2; -1.2; 3 * 0.4 - 0.6 = 0.6; 0.4. Squares: 2.0 in all.
    assert squared_error(VALUES, GROUPS) == pytest.approx(4 / 3 * 2.0 / 100)
    assert squared_error(VALUES, np.zeros(10, dtype=int)) is None  # the spread of sources cannot be told from one


def test_the_squared_error_is_millers_but_for_the_loss_to_the_mean() -> None:
    """SE^2 of independent items and the products of different items of one source, as his formula is written."""
    apart = VALUES - VALUES.mean()
    crossed = sum(apart[i] * apart[j] for i, j in itertools.permutations(range(10), 2) if GROUPS[i] == GROUPS[j])
    miller = VALUES.var(ddof=1) / 10 + crossed / 100
    own = (apart**2).sum() / (10 - 1) / 100  # what n / (n - 1) on the squares adds
    assert squared_error(VALUES, GROUPS) == pytest.approx(4 / 3 * (miller - own))
    assert squared_error(VALUES, ALONE) == pytest.approx(VALUES.var(ddof=1) / 10)


def test_equal_sources_are_a_mean_of_source_means() -> None:
    values = np.random.default_rng(0).normal(size=60)
    means = values.reshape(12, 5).mean(axis=1)
    known = stats.ttest_1samp(means, 0).confidence_interval()
    found = mean_interval(values, clusters=np.repeat(np.arange(12), 5))
    assert [found.low, found.high] == pytest.approx([known.low, known.high])
    assert found.method == "t over clusters" and found.n == 60


def test_the_squared_error_is_that_of_drawing_sources_again() -> None:
    """The bootstrap over sources, which draws whole sources with replacement: smaller by (G - 1) / G."""
    generator = np.random.default_rng(1)
    codes = np.sort(generator.integers(0, 40, size=200))
    codes = np.unique(codes, return_inverse=True)[1]
    values = generator.normal(size=200) + generator.normal(size=codes.max() + 1)[codes]
    sums, sizes = np.bincount(codes, weights=values), np.bincount(codes)
    drawn = generator.integers(0, len(sums), size=(20_000, len(sums)))
    spread = (sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)).var()
    found = squared_error(values, codes)
    assert found is not None and found * (1 - 1 / len(sums)) == pytest.approx(spread, rel=0.05)
    assert found > 2 * values.var(ddof=1) / 200  # and not what independent items would have


# -------------------------------------------------------------------------------------------- intervals and tests


def test_wilsons_interval_of_as_many_items_as_they_are_worth() -> None:
    """Every item four times over is worth a fourth of them: with many sources nearly Wilson's of the sources."""
    once = (np.random.default_rng(2).random(2000) < 0.3).astype(np.float64)
    found = run_interval(np.repeat(once, 4), clusters=np.repeat(np.arange(2000), 4))
    known = wilson(once.sum(), 2000)
    assert [found.low, found.high] == pytest.approx([known.low, known.high], abs=2e-4)
    assert found.mean == once.mean() and found.n == 8000 and found.method == "wilson over clusters"


def test_the_effective_size_by_hand() -> None:
    # s^2 / n = 0.26667 / 10; the squared error is 0.026667: the design effect is 1, and 3 degrees of freedom are left.
    ratio = stats.norm.ppf(0.975) / stats.t.ppf(0.975, 3)
    assert effective_size(VALUES, GROUPS, confidence=0.95) == pytest.approx(10 * ratio**2)
    assert effective_size(np.ones(10), GROUPS, confidence=0.95) == pytest.approx(4 * ratio**2)
    assert effective_size(np.array([1.0, 0.0] * 5), np.repeat(np.arange(5), 2), confidence=0.95) == pytest.approx(
        10 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 4)) ** 2
    )


def test_sign_flips_by_hand_and_by_enumeration() -> None:
    assert sign_flips(np.array([2.0, 1.0, 0.0])) == 0.5  # of +-2 +- 1 two in four reach 3
    generator = np.random.default_rng(3)
    for _ in range(8):
        sums = generator.integers(-3, 4, size=9).astype(np.float64)
        reached = [abs(np.dot(signs, sums)) >= abs(sums.sum()) for signs in itertools.product((-1, 1), repeat=9)]
        assert sign_flips(sums) == pytest.approx(np.mean(reached))


@pytest.mark.parametrize(("a", "b"), [(0, 0), (9, 1), (1, 9), (5, 5), (130, 97), (1, 0), (900, 800)])
def test_sign_flips_of_single_items_are_mcnemar(a: int, b: int) -> None:
    assert sign_flips(np.array([1.0] * a + [-1.0] * b)) == pytest.approx(mcnemar(a, b), rel=1e-9)


def test_one_source_allows_no_claim() -> None:
    one = np.zeros(10, dtype=int)
    assert run_interval(VALUES, clusters=one).low is None and mean_interval(VALUES, clusters=one).low is None
    assert paired_difference(VALUES, 1 - VALUES, clusters=one).p is None
    assert paired_difference(VALUES, VALUES / 3, clusters=one).p is None
    assert paired_over_seeds([VALUES, 1 - VALUES], [VALUES, VALUES / 2], clusters=one).p is None


def test_items_that_are_all_of_their_own_source_are_as_before() -> None:
    """Up to rounding, but for the two distributions that know of sources: McNemar's, and t in the place of normal."""
    generator = np.random.default_rng(4)
    a, b = generator.random((2, 3, 10))
    for found, plain in (
        (mean_over_seeds(a, clusters=ALONE), mean_over_seeds(a)),
        (paired_over_seeds(a, b, clusters=ALONE), paired_over_seeds(a, b)),
        (paired_difference(a[0], b[0], clusters=ALONE), paired_difference(a[0], b[0])),
    ):
        assert [found.mean, found.low, found.high] == pytest.approx([plain.mean, plain.low, plain.high])
    binary = paired_difference(VALUES, 1 - VALUES, clusters=ALONE)
    assert binary.p == pytest.approx(mcnemar(6, 4)) and binary.test == "exact sign flips of clusters"


def test_promised_error_rates_hold_where_items_share_sources() -> None:
    """Intervals and tests over items fail here; those over sources keep 5 %, within three standard errors."""
    generator = np.random.default_rng(5)
    repeats, limit = 300, 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    missed = apart = outside = naive = 0
    for _ in range(repeats):
        a, codes = blocks(generator, 40, 6, 0.8)
        b, _ = blocks(generator, 40, 6, 0.8)
        found, test = run_interval(a, clusters=codes), paired_difference(a, b, clusters=codes)
        assert None not in (found.low, found.high, test.p, test.low, test.high)
        missed += not found.low <= 0.6 <= found.high  # type: ignore[operator]
        apart += test.p < 0.05  # type: ignore[operator]
        outside += not test.low <= 0 <= test.high  # type: ignore[operator]
        naive += not run_interval(a).low <= 0.6 <= run_interval(a).high  # type: ignore[operator]
    assert max(missed, apart, outside) / repeats <= limit, (missed, apart, outside)
    assert naive / repeats > 0.2


def test_a_real_difference_is_found_over_sources() -> None:
    generator = np.random.default_rng(6)
    a, codes = blocks(generator, 60, 4, 0.8)
    worse = np.where(generator.random(a.size) < 0.35, 0.0, a)
    found = paired_difference(a, worse, clusters=codes)
    assert found.p is not None and found.p < 1e-6 and found.low is not None and found.low > 0


# ------------------------------------------------------------------------------------- from an evaluation to a claim


def graded(clusters: list[str | None], **changes: Any) -> grading.Scored:
    task = validated(
        Task,
        {
            "name": "toy",
            "version": 1,
            "kind": "classify",
            "test": {"dataset": "./rows", "split": "test"},
            "columns": {"text": "text", "label": "label"},
            "pair": ["text"],
            "labels": ["no", "yes"],
            "reference": "label",
            "grader": {"name": "label"},
            "metrics": {"acc": "higher", "f1": "higher"},
            **changes,
        },
        where="test",
    )
    examples = [Example(item=str(n), reference=n % 2, cluster=cluster) for n, cluster in enumerate(clusters)]
    wrong = {1, 4, 8}
    said = [Prediction(index=1 - n % 2 if n in wrong else n % 2) for n in range(len(clusters))]
    return grading.grade(task, examples, said)


def test_metrics_and_pseudo_values_carry_the_standard_error_over_sources() -> None:
    found = graded([f"s{code}" for code in GROUPS], cluster="source")
    for name, metric in found.metrics.items():
        squared = squared_error(found.outcomes[name], GROUPS)
        assert squared is not None and metric.standard_error == pytest.approx(math.sqrt(squared)), name
    assert found.notes["clusters"] == 4
    alone = graded([str(n) for n in range(10)], cluster="source")
    plain = graded([None] * 10)
    assert alone.metrics == plain.metrics != found.metrics
    assert alone.notes == {**plain.notes, "clusters": 10} and "clusters" not in plain.notes
    assert graded([None, None, *"aabbccdd"], cluster="source").notes["clusters"] == 6
    assert graded(["one"] * 10, cluster="source").metrics["acc"].standard_error is None


def write_clusters(lab: Lab, codes: Any) -> None:
    for outcomes in lab.root.rglob("*.npy"):
        (outcomes.parent / "clusters.json").write_text(json.dumps([None if code < 0 else f"s{code}" for code in codes]))


def test_compare_tests_over_sources_and_says_so(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    a, b = lab.outcomes(0.8), lab.outcomes(0.6)
    lab.run("lora/r16", 0, a)
    lab.run("ia3/plain", 0, b)
    plain = lab.table()
    codes = np.arange(NUM_ITEMS) // 6
    write_clusters(lab, codes)
    table = lab.table()
    expected = paired_difference(a, b, clusters=codes)
    pair = between(table, "lora/r16", "ia3/plain")
    assert (pair.p, pair.low, pair.high, pair.test) == (expected.p, expected.low, expected.high, expected.test)
    assert table.arms[0].score == run_interval(a, clusters=codes)
    [note] = [note for note in table.notes if "sources" in note]
    assert note.startswith(f"the {NUM_ITEMS} items come from 20 sources")
    write_clusters(lab, np.arange(NUM_ITEMS))  # all of their own: nothing changes
    again = lab.table()
    assert again.pairs == plain.pairs and again.notes == plain.notes
    assert [arm.score for arm in again.arms] == [arm.score for arm in plain.arms]


def test_seeds_are_compared_over_sources(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    rows = [[lab.outcomes(skill) for _ in range(3)] for skill in (0.8, 0.5)]
    for name, arm in zip(("lora/r16", "ia3/plain"), rows, strict=True):
        for seed, values in enumerate(arm):
            lab.run(name, seed, values)
    codes = np.arange(NUM_ITEMS) // 4
    write_clusters(lab, codes)
    pair = between(lab.table(), "lora/r16", "ia3/plain")
    expected = paired_over_seeds(np.array(rows[0]), np.array(rows[1]), clusters=codes)
    assert (pair.p, pair.test, pair.level) == (expected.p, "t over seeds and clusters", "method")


@pytest.mark.parametrize("content", ["{", '["a"]', "{}", None])
def test_unknown_sources_are_not_taken_for_none(tmp_path: Path, content: str | None) -> None:
    lab = Lab(tmp_path)
    known = lab.evaluation("one", "last", lab.outcomes(0.5), notes={"clusters": 20})
    lab.run("lora/r16", 0, None, evaluations=(known,))
    if content is not None:
        (tmp_path / "one" / "clusters.json").write_text(content)
    [arm] = lab.table().arms
    assert arm.outcomes.matrix is None and "clusters.json" in str(arm.outcomes.missing)
