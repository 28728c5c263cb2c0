"""Before the first step: the adapter leaves the base's output alone, and the seed decides how it starts."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from peftlab.invariants.findings import Finding, compared, said, stated
from peftlab.invariants.trial import Trial


def output(trial: Trial) -> Finding:
    """Step 0: logits with the adapter equal the base's, or are changed on purpose."""
    name = "start"
    if trial.spec.adapter is None:
        return said(name, "exempt", "full fine-tuning starts as the base")
    reason = stated(trial.spec, "changes_output")
    config = trial.reloaded.adapter
    if reason is None and config is not None and config.is_prompt_learning:
        reason = "virtual tokens stand before the text from the first step on"
    at_random = [key for key, value in trial.spec.adapter.items() if key.startswith("init_") and value is False]
    if reason is None and at_random:
        reason = f"{at_random[0]}: false starts the adapter at random values"
    return compared(
        name,
        difference(trial.course.start_logits, trial.base_logits),
        trial.allowed,
        what="output before step 1 against the base's",
        fix="see whether the adapter's init_* is meant to change the output",
        stated=reason,
    )


def seed(trial: Trial) -> Finding:
    """The same seed starts the same; another one differently, where chance has a part in the start."""
    name = "seed"
    if trial.spec.adapter is None and not trial.spec.task.has_head:
        return said(name, "exempt", "full fine-tuning starts from the base's weights")
    first, again = trial.course.start, trial.resumed[0]
    unlike = [key for key in first if not same(first[key], again[key])]
    if unlike:
        text = f"the same seed starts differently: {unlike[0]} and {len(unlike) - 1} more"
        return said(name, "broken", text, fix="report it: something draws from another stream than `adapter`")
    ready = trial.prepare(seed=trial.spec.seed + 1)
    other = {key: parameter.detach() for key, parameter in ready.built.trainable().items()}
    if all(same(first[key], other[key]) for key in first):
        text = "every seed starts the same: from constants, the base's weights, or a seed in the adapter's own config"
        return said(name, "stated", text)
    return said(name, "exact", "the same seed repeats the start to the last bit, another one changes it")


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal to the last bit; NaN equals NaN."""
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and bool(torch.eq(one, other).logical_or(one != one).all())
    )


def worst(figures: Iterable[float]) -> float:
    """The largest of differences; NaN where one is NaN, which `max` passes over unless it comes first."""
    found = list(figures)
    return math.nan if any(map(math.isnan, found)) else max(found, default=0.0)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference between two tensors of one shape."""
    return float((one.double() - other.double()).abs().max())
