"""A metric over a whole set as one number an item, so that its error and its pairs are those of any mean.

Tukey's jackknife (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 11): with the metric theta of n
items and theta(i) of all but item i, item i stands for n * theta - (n - 1) * theta(i). The spread of these
pseudo-values gives the jackknife's standard error of theta, and the difference of two models' pseudo-values on the same
items that of the difference of their metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def pseudo_values(whole: float, without: Sequence[float]) -> list[float]:
    """One number an item whose mean is the metric itself: its bias of order 1/n is not taken off.

    Args:
        whole: The metric of all items.
        without: For each item, the metric of all others; of a single item it is not read.
    """
    count = len(without)
    if count == 1:
        return [whole]
    values = [count * whole - (count - 1) * left for left in without]
    shift = whole - math.fsum(values) / count
    return [value + shift for value in values]
