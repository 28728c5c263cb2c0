"""What intervals and tests of binary outcomes take in the place of a count of items, where items share sources.

Wilson's interval and McNemar's test count independent items. Here: how many independent ones the items are worth, and
the test that McNemar's becomes when whole sources are drawn. Scipy is loaded on first use.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftlab.clusters import Codes, count, squared_error

Array = NDArray[np.float64]


def effective_size(values: Array, codes: Codes, *, confidence: float) -> float | None:
    """How many independent items these are worth: min(n, n / d) (z / t)^2, d the design effect, t of G - 1 sources.

    The design effect is the squared standard error over that of independent items; where all items are equal it is not
    known, and a source counts as one item. Fewer sources say less about the spread of sources, hence the quantiles.
    None of a single source. Source: Korn and Graubard (1998), "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data", Survey Methodology 24; with Wilson's interval: Dean and
    Pagano (2015), "Evaluating confidence interval methods for binomial proportions in clustered surveys", Journal of
    Survey Statistics and Methodology 3.
    """
    found, n, groups = squared_error(values, codes), values.size, count(codes)
    if found is None:
        return None
    alone = float(values.var(ddof=1)) / n
    size = float(groups) if not alone else n if not found else min(n, n * alone / found)
    special = _special()
    tail = (1 - confidence) / 2
    return size * float(special.ndtri(tail) / special.stdtrit(groups - 1, tail)) ** 2


def sign_flips(sums: Array) -> float:
    """Exact two-sided p of "in each source, the two runs could be exchanged": how often random signs give as much.

    P(|sum of +-D_c| >= |sum of D_c|), every sign with probability 1/2, over the whole numbers D_c = how many more
    items of source c were won by a than by b. Where no two items share a source it is McNemar's exact test. Source:
    Canay, Romano and Shaikh (2017), "Randomization tests under an approximate symmetry assumption", Econometrica 85.

    Example:
        >>> sign_flips(np.array([2.0, 1.0, 0.0]))
        0.5
    """
    steps, counts = np.unique(np.abs(sums[sums != 0]).astype(np.int64), return_counts=True)
    chances = np.ones(1)  # of every value from -reach to reach
    for step, number in zip(steps.tolist(), counts.tolist(), strict=True):
        kernel = np.zeros(2 * step * number + 1)
        kernel[:: 2 * step] = _binomial(number)
        chances = np.convolve(chances, kernel)
    reach = len(chances) // 2
    beyond = np.abs(np.arange(-reach, reach + 1)) >= abs(round(float(sums.sum())))
    return min(1.0, float(chances[beyond].sum()))


def _binomial(number: int) -> Array:
    """The chances of 0 to `number` heads."""
    heads = np.arange(number + 1)
    log = _special().gammaln
    chances: Array = np.exp(log(number + 1) - log(heads + 1) - log(number - heads + 1) - number * math.log(2))
    return chances


def _special() -> Any:
    from scipy import special

    return special
