"""Optimizer by name and the learning-rate schedule as a pure function of the step.

A schedule without state needs no saving: step 17 has the same rate in a resumed run. Optimizers are found by rule: a
class of torch.optim, one of peft's functions, or a class of bitsandbytes.optim; none is known by name here.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch

from peftlab.config.groups import OptimSettings
from peftlab.errors import UserError, unknown_name

_UNUSABLE = {
    "LBFGS": "evaluates the loss several times a step",
    "SparseAdam": "takes sparse gradients only, and those of a model are dense",
}
_EXEMPT = re.compile(r"bias|layernorm|rmsnorm|(^|[._])norm(\.|$)")
"""In the names of tensors that do not decay: `transformers.Trainer.get_decay_parameter_names`."""
_EXTRA = "bitsandbytes"
_PEFT_PREFIX, _PEFT_SUFFIX = "create_", "_optimizer"
_REFUSALS = (TypeError, ValueError, NotImplementedError, AttributeError, KeyError)
"""What optimizers raise for arguments, or a model, that they cannot work with."""


def _classes(module: Any) -> dict[str, type[torch.optim.Optimizer]]:
    """The optimizers of a module that can be used here."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
        and name not in _UNUSABLE
    }


def _extra_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Those of bitsandbytes, or none where it is not installed.

    Raises:
        UserError: It is installed and cannot be imported.
    """
    if importlib.util.find_spec(_EXTRA) is None:
        return {}
    try:
        return _classes(importlib.import_module(f"{_EXTRA}.optim"))
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"optim.optimizer: {_EXTRA} is installed and cannot be imported: {error}", fix="install it anew"
        ) from error


def _peft_functions() -> dict[str, FunctionType]:
    """peft's `create_<slug>_optimizer` by slug."""
    import peft.optimizers

    return {
        name.removeprefix(_PEFT_PREFIX).removesuffix(_PEFT_SUFFIX): value
        for name, value in vars(peft.optimizers).items()
        if name.startswith(_PEFT_PREFIX) and name.endswith(_PEFT_SUFFIX)
    }


def _slug(name: str) -> str:
    """An optimizer's name as peft's functions spell it: `a+` is `aplus`, `a-b` is `ab`."""
    return name.lower().replace("+", "plus").replace("-", "").replace("_", "")


def _class_of(name: str) -> type[torch.optim.Optimizer]:
    """The class of torch, else of bitsandbytes.

    Raises:
        UserError: Neither has it, it works in another way than the loop, or it looks like one of bitsandbytes, which
            is not installed.
    """
    classes = _classes(torch.optim)
    if name in _UNUSABLE:
        raise UserError(
            f"optim.optimizer: {name} cannot be used here: it {_UNUSABLE[name]}", fix="take another: AdamW, say"
        )
    if name in classes:
        return classes[name]
    extra = _extra_classes()
    if name in extra:
        return extra[name]
    if not extra and (name.lower().endswith("bit") or name.lower().startswith("paged")):
        raise UserError(
            f"optim.optimizer: '{name}' needs the library {_EXTRA}", fix="pip install 'peftlab[bnb]', or take another"
        )
    raise unknown_name("optim.optimizer", name, [*classes, *_peft_functions(), *extra])


def build(
    parameters: Mapping[str, torch.nn.Parameter],
    settings: OptimSettings,
    *,
    model: Any = None,
    adapter: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters.

    One of torch or bitsandbytes has them in one group, so that decay and rate are the same for every tensor, or in two
    where some do not decay. One of peft's makes its own groups and may freeze some of them; it gets the model, AdamW
    where it builds on another optimizer, and whatever else it requires out of the adapter's config or
    `optim.optimizer_kwargs`.

    Args:
        parameters: The trainable ones, by name.
        settings: Which optimizer, with what.
        model: The adapted model, for one of peft's.
        adapter: Its config as plain data.

    Raises:
        UserError: Unknown optimizer, arguments that it does not take, or a model that it cannot work on.
    """
    if "lr" in settings.optimizer_kwargs:
        raise UserError("optim.optimizer_kwargs: 'lr' has no effect there", fix="set optim.learning_rate")
    if settings.weight_decay and "weight_decay" in settings.optimizer_kwargs:
        raise UserError("weight_decay stands in optim and in optim.optimizer_kwargs", fix="give it once")
    function = _peft_functions().get(_slug(settings.optimizer))
    make: Any = _class_of(settings.optimizer) if function is None else function
    if function is None:
        arguments: dict[str, Any] = {"params": _groups(parameters, settings, model), **_arguments(make, settings)}
    else:
        arguments = {"model": model, **_peft_arguments(function, settings, adapter)}
    try:
        optimizer: torch.optim.Optimizer = make(**arguments)
    except _REFUSALS as error:
        taken = ", ".join(name for name in inspect.signature(make).parameters if name not in ("params", "model", "lr"))
        raise UserError(
            f"optim.optimizer_kwargs: {settings.optimizer} refuses its arguments, or this model: {error}",
            fix=f"it takes: {taken}",
        ) from error
    _check_groups(optimizer, parameters, settings)
    return optimizer


def check(settings: OptimSettings, adapter: Mapping[str, Any] | None) -> None:
    """Look for mistakes in the settings without a model.

    Raises:
        UserError: As `build`, as far as it shows without one.
    """
    function = _peft_functions().get(_slug(settings.optimizer))
    if function is None:
        build({"weight": torch.nn.Parameter(torch.zeros(1, 1))}, settings)
    else:
        _peft_arguments(function, settings, adapter)


def _groups(parameters: Mapping[str, torch.nn.Parameter], settings: OptimSettings, model: Any) -> list[Any]:
    """All tensors as they are or, where some do not decay, the others first."""
    if settings.decay_exempt == "none":
        return list(parameters.values())
    norms = set() if model is None else _of_norms(model)
    decaying: list[torch.nn.Parameter] = []
    exempt: list[torch.nn.Parameter] = []
    for name, parameter in parameters.items():
        (exempt if _EXEMPT.search(name.lower()) or id(parameter) in norms else decaying).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decaying}, {"params": exempt, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _of_norms(model: torch.nn.Module) -> set[int]:
    """Ids of the tensors of layer norms."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    return {id(parameter) for norm in norms for parameter in norm.parameters()}


def _arguments(make: Callable[..., Any], settings: OptimSettings) -> dict[str, Any]:
    """Rate, decay and what else the user named; decay only where there is one."""
    accepted = inspect.signature(make).parameters
    open_ended = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in accepted.values())
    arguments: dict[str, Any] = {"lr": settings.learning_rate, **settings.optimizer_kwargs}
    if "weight_decay" in accepted or open_ended:
        arguments.setdefault("weight_decay", settings.weight_decay)
    elif settings.weight_decay:
        raise UserError(f"optim.weight_decay: {settings.optimizer} has none", fix="set optim.weight_decay=0")
    return arguments


def _peft_arguments(
    function: FunctionType, settings: OptimSettings, adapter: Mapping[str, Any] | None
) -> dict[str, Any]:
    if adapter is None:
        raise UserError(
            f"optim.optimizer = {settings.optimizer}: it works on an adapter, and this experiment has none",
            fix="add adapter_config.json, or take a class of torch.optim",
        )
    if settings.decay_exempt != "none":
        raise UserError(
            f"optim.decay_exempt = {settings.decay_exempt}: {settings.optimizer} makes groups of its own",
            fix="set optim.decay_exempt=none",
        )
    arguments = _arguments(function, settings)
    own_decay = f"{_slug(settings.optimizer)}_weight_decay"
    if own_decay in function.__code__.co_consts and own_decay not in arguments:
        # it takes its decay out of the open-ended arguments under this name, and lets the plain one fall
        arguments[own_decay] = arguments.pop("weight_decay")
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD or name in arguments or name == "model":
            continue
        if name == "optimizer_cls":
            arguments[name] = torch.optim.AdamW
        elif parameter.default is inspect.Parameter.empty:
            if name not in adapter:
                raise UserError(
                    f"optim.optimizer_kwargs: {settings.optimizer} needs '{name}'",
                    fix=f"add it: optim.optimizer_kwargs.{name}=...",
                )
            arguments[name] = adapter[name]
    return arguments


def _check_groups(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], settings: OptimSettings
) -> None:
    """Every tensor that is trained is in exactly one group, and the decay asked for is there."""
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    trained = {id(parameter) for parameter in parameters.values() if parameter.requires_grad}
    assert trained <= set(grouped) and len(grouped) == len(set(grouped)), "every trained tensor is in one group"
    decays = [group.get("weight_decay") for group in optimizer.param_groups]
    if settings.weight_decay and settings.decay_exempt == "none" and settings.weight_decay not in decays:
        raise UserError(
            f"optim.weight_decay = {settings.weight_decay} has no effect on {settings.optimizer}",
            fix="set optim.weight_decay=0, and see its own arguments (optim.optimizer_kwargs)",
        )
    for group in optimizer.param_groups:
        if group["lr"] != settings.learning_rate:
            group[_OWN_RATE] = group["lr"]


_OWN_RATE = "initial_lr"
"""Key of a group that has a peak rate of its own."""


def set_rate(optimizer: torch.optim.Optimizer, settings: OptimSettings, step: int, max_steps: int) -> float:
    """Give every group the rate of this step, groups with a peak of their own in proportion; returns the plain rate."""
    rate = learning_rate(settings, step, max_steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * (group.get(_OWN_RATE, settings.learning_rate) / settings.learning_rate)
    return rate


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
