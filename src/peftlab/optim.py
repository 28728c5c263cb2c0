"""Optimizer by name and the learning-rate schedule as a pure function of the step.

A schedule without state needs no saving: step 17 has the same rate in a resumed run.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch

from peftlab.errors import UserError, unknown_name
from peftlab.groups import OptimSettings

_NEEDS_CLOSURE = {"LBFGS"}
_NEEDS_SPARSE = {"SparseAdam"}


def optimizer_names() -> list[str]:
    """Classes of torch.optim that step on dense gradients without a closure."""
    found = [
        name
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    ]
    return sorted(set(found) - _NEEDS_CLOSURE - _NEEDS_SPARSE)


def build(parameters: dict[str, torch.nn.Parameter], settings: OptimSettings) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters, in one group: decay and rate are the same for every tensor.

    Raises:
        UserError: Unknown optimizer, or arguments that it does not take.
    """
    known = optimizer_names()
    if settings.optimizer not in known:
        raise unknown_name("optim.optimizer", settings.optimizer, known)
    if "lr" in settings.optimizer_kwargs:
        raise UserError("optim.optimizer_kwargs: 'lr' has no effect there", fix="set optim.learning_rate")
    optimizer_class = getattr(torch.optim, settings.optimizer)
    arguments: dict[str, Any] = {"lr": settings.learning_rate, **settings.optimizer_kwargs}
    accepted = inspect.signature(optimizer_class).parameters
    if settings.weight_decay and "weight_decay" in settings.optimizer_kwargs:
        raise UserError("weight_decay stands in optim and in optim.optimizer_kwargs", fix="give it once")
    if "weight_decay" in accepted and "weight_decay" not in settings.optimizer_kwargs:
        arguments["weight_decay"] = settings.weight_decay
    elif settings.weight_decay and "weight_decay" not in accepted:
        raise UserError(f"optim.weight_decay: {settings.optimizer} has none", fix="set optim.weight_decay=0")
    try:
        optimizer: torch.optim.Optimizer = optimizer_class(list(parameters.values()), **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"optim.optimizer_kwargs: {settings.optimizer} refuses its arguments: {error}",
            fix=f"it takes: {', '.join(name for name in accepted if name not in ('params', 'lr'))}",
        ) from error
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, parameters.values())), "every trainable tensor is in exactly one group"
    return optimizer


def warmup_steps(settings: OptimSettings, max_steps: int) -> int:
    """Whole warm-up steps; a ratio is rounded up, as transformers does."""
    if isinstance(settings.warmup_steps, int):
        return settings.warmup_steps
    return math.ceil(settings.warmup_steps * max_steps)


def learning_rate(settings: OptimSettings, step: int, max_steps: int) -> float:
    """The rate used by optimizer step `step` (counted from 1).

    Linear warm-up from 0, then constant, linear to 0, or half a cosine to 0: the rules of transformers'
    `get_*_schedule_with_warmup`, whose first step therefore has rate 0 when there is a warm-up.
    """
    warmup = warmup_steps(settings, max_steps)
    done = step - 1
    if done < warmup:
        return settings.learning_rate * done / max(1, warmup)
    if settings.lr_scheduler_type == "constant":
        return settings.learning_rate
    progress = (done - warmup) / max(1, max_steps - warmup)
    if settings.lr_scheduler_type == "linear":
        return settings.learning_rate * max(0.0, 1.0 - progress)
    return settings.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
