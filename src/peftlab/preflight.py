"""Finds what cannot work in a run before time is spent on it: grader and metrics, engine, optimizer, adapter.

Scores and trains nothing, and decides nothing: whatever it lets pass is looked at again where it is used.
"""

from __future__ import annotations

import torch

from peftlab import counting, models, optim, scoring
from peftlab.errors import UserError, unknown_name
from peftlab.protocols import find
from peftlab.spec import RunSpec
from peftlab.task import measured_metrics


def check(spec: RunSpec) -> None:
    """Look at everything that is named in a run that is still to be trained.

    Raises:
        UserError: A name that does not exist, or values that torch or peft refuse.
    """
    measured = measured_metrics(spec.task)
    best = spec.train.metric_for_best_model
    if best is not None and best not in measured:
        raise unknown_name("metric", best, measured, where="train.metric_for_best_model")
    if spec.task.kind == "generate":
        find("engines", spec.generation.engine, where="generation.engine")
    optim.build({"weight": torch.nn.Parameter(torch.zeros(1, 1))}, spec.optim)
    if spec.adapter is not None:
        _check_adapter(spec)


def _check_adapter(spec: RunSpec) -> None:
    """Build the adapter on shapes alone; where that fails, the real weights decide (some methods need them)."""
    try:
        counting.without_weights(spec)
    except (UserError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ImportError, OSError):
        models.adapt(scoring.load_base(spec), spec)
