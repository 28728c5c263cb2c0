"""From the grades of several answers to one item: their mean, and pass@K. Needs no model and no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from peftlab.protocols import Grade, Grader, pass_at

FULL_SCORE = 1.0
"""An answer with this score passes."""


def pass_at_k(answers: int, passed: int, k: int) -> float:
    """The chance that one answer of `k`, drawn without replacement from all, passes: 1 - C(n - c, k) / C(n, k).

    Unbiased: Chen et al. 2021, Evaluating Large Language Models Trained on Code, equation 1. Whole numbers are
    divided once, so nothing is lost to rounding.

    Args:
        answers: How many were made (n), at least `k`.
        passed: How many of them pass (c).
        k: How many are drawn.
    """
    assert 0 <= passed <= answers and 1 <= k <= answers
    drawn = math.comb(answers, k)
    return (drawn - math.comb(answers - passed, k)) / drawn


def outcomes(
    grades: Mapping[str, Sequence[Sequence[Grade]]], grader: Grader, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """One number an item for every metric `pass@K` among `metrics` that is defined: each item has K answers or more.

    Args:
        grades: Per mode and item, the grades of its answers.
        grader: Who gave them.
        metrics: Names that the task asks for.
    """
    result = {}
    for name in metrics:
        k, mode = pass_at(name, grader) or (0, "")
        items = grades.get(mode)
        if items is not None and all(len(item) >= k for item in items):
            passed = [sum(grade.score >= FULL_SCORE for grade in item) for item in items]
            values = [pass_at_k(len(item), count, k) for item, count in zip(items, passed, strict=True)]
            result[name] = np.array(values, dtype=np.float64)
    return result
