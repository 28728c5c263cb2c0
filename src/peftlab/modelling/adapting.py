"""The experiment's adapter (or full fine-tuning) on a base model, and what is said when peft refuses it.

The one place that makes peft's modules. Loads no weights.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftlab import own
from peftlab.config.settings import validated
from peftlab.config.spec import ADAPTER_FILE, BOOKKEEPING, RunSpec, method_name, variants_of
from peftlab.errors import UserError, nearest, unknown_name
from peftlab.modelling import beginning, naming, precision, randomness
from peftlab.modelling.models import TASK_TYPES, UNKNOWN_BUDGET, Base, Built, Kind, built_on
from peftlab.protocols import Calibration, Method, find, names
from peftlab.records.slot import ran_out_of_memory


def adapter_place(spec: RunSpec) -> str:
    """Where an error finds the adapter's config: a file of its own, or a part of the experiment's YAML."""
    place = Path(spec.folder)
    return f"{place} [adapter]" if place.is_file() else str(place / ADAPTER_FILE)


def adapter_config(
    adapter: Mapping[str, Any], kind: Kind, *, max_steps: int, where: str = ADAPTER_FILE
) -> tuple[Any, list[str]]:
    """The config of an experiment's adapter, peft's or a method's own, and the unknown empty keys that were dropped.

    Raises:
        UserError: An unknown peft type, an unknown key that says something, a config of another task type, or
            values that peft (or the method) refuses.
    """
    method = method_of(adapter, where=where)
    config_class, shown = _config_class(adapter, method, where)
    ours = method.config is not None
    known = set(config_class.model_fields) if ours else {field.name for field in dataclasses.fields(config_class)}
    values, dropped = {}, []
    for key, value in adapter.items():
        if key in BOOKKEEPING or key == "peft_type":
            continue
        if key in known:
            values[key] = copy.deepcopy(value)  # peft adds to the lists that it is given
        elif value is None or value is False or value in ({}, []):  # nothing is asked for; 0 is a number
            dropped.append(key)
        else:
            guess = nearest(key, known)
            raise UserError(
                f"{where}: {shown} has no setting '{key}' (= {json.dumps(value)[:60]})",
                fix=f"did you mean '{guess}'?" if guess else f"settings: {', '.join(sorted(known))}",
            )
    if not ours:
        _check_switches(config_class, values, shown, where)
    wanted = TASK_TYPES[kind]
    if values.get("task_type") not in (None, wanted):
        raise UserError(
            f"{where}: task_type is {values['task_type']}, but the task needs {wanted}",
            fix="remove 'task_type' (it is filled in) or choose another task",
        )
    values["task_type"] = wanted
    if ours:
        values["peft_type"] = str(adapter["peft_type"])
        return validated(config_class, values, where=where, fix="mend the value named"), dropped
    if "total_step" in known and values.get("total_step") is None:
        values["total_step"] = max_steps
    if method.schedule is not None:
        filled = method.schedule(values, max_steps)
        values |= {key: value for key, value in filled.items() if values.get(key) is None}
    try:
        with warnings.catch_warnings():  # peft says that it takes its own defaults
            warnings.filterwarnings("ignore", message=".*is not specified. Using default")
            return config_class(**values), dropped
    except (ValueError, TypeError, ImportError) as error:
        fix = "install it" if isinstance(error, ImportError) else "mend the value named"
        if "total_step" in str(error) and not adapter.get("total_step"):
            fix += f"; total_step is the budget, {max_steps} steps here"
        raise UserError(f"{where}: peft refuses this config: {error}", fix=fix) from error


def _check_switches(config_class: Any, values: Mapping[str, Any], shown: str, where: str) -> None:
    """peft takes any text for true."""
    for field in dataclasses.fields(config_class):
        value = values.get(field.name)
        if field.type in (bool, "bool") and value is not None and not isinstance(value, bool):
            raise UserError(
                f"{where}: {shown} takes true or false for '{field.name}', not {json.dumps(value)[:60]}",
                fix="write true or false, without quotes",
            )


def _config_class(adapter: Mapping[str, Any], method: Method, where: str) -> tuple[Any, str]:
    """The class of a config: the method's own, or peft's by its type; and what an error calls it."""
    named = str(adapter["peft_type"])
    if method.config is not None:
        return method.config, named
    if ":" in named:
        raise UserError(
            f"{where}: the plug-in '{named}' has no config", fix="give its Method a config, a subclass of own.OwnConfig"
        )
    import peft

    mapping = {str(peft_type.value): cls for peft_type, cls in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if named.upper() not in mapping:
        known = {*mapping, *(name.upper() for name in names("methods"))}
        raise unknown_name("peft_type", named, known, where=where)
    return mapping[named.upper()], named.upper()


def method_of(adapter: Mapping[str, Any] | None, *, where: str = ADAPTER_FILE) -> Method:
    """The plug-in that a method needs: `<peft_type>_<variant>`, then `<peft_type>`, else peft's own way.

    Of several variants at once each is looked for by itself, after the name of all of them.
    A peft type that reads `package.module:attr` is one from a package that the user named.
    """
    if adapter is not None and ":" in str(adapter["peft_type"]):
        outside: Method = find("methods", str(adapter["peft_type"]), where=where)
        return outside
    known = names("methods")
    variants = [] if adapter is None else [f"{str(adapter['peft_type']).lower()}_{one}" for one in variants_of(adapter)]
    kind = [] if adapter is None else [str(adapter["peft_type"]).lower()]
    for candidate in (method_name(adapter), *variants, *kind):
        if candidate in known:
            plugin: Method = find("methods", candidate)
            return plugin
    return Method()


def notes(spec: RunSpec) -> list[str]:
    """What the method has to say of this run before it is trained."""
    asked = method_of(spec.adapter, where=adapter_place(spec)).note
    text = asked(spec.adapter or {}, spec.quant.method) if asked is not None else None
    return [text] if text else []


def adapt(
    base: Base,
    spec: RunSpec,
    *,
    calibration: Calibration | None = None,
    total_steps: int | None = None,
    shapes_only: bool = False,
) -> Built:
    """Put the experiment's adapter on the base (or free all weights for full fine-tuning), seeded by stream `adapter`.

    Args:
        base: Changed in place.
        spec: The run.
        calibration: What the adapter's start may look at; a start that asks for it must get it.
        total_steps: Steps of the whole budget, which some schedules of methods need.
        shapes_only: The adapter is only looked at: it begins without its start, as far as that is possible.

    Raises:
        UserError: peft refuses the config for this model, or its start cannot work on it.
    """
    method = method_of(spec.adapter)
    if spec.model.gradient_checkpointing:  # before the adapter: peft refuses it then where its method cannot
        _save_memory(base.model, method)
    asked = None if shapes_only else beginning.asked(spec)
    initial: Mapping[str, torch.Tensor] = {}
    before = {id(parameter) for parameter in base.model.parameters()}
    model: Any = base.model
    config: Any = None
    dropped: list[str] = []
    if spec.adapter is None:
        precision.check_trains_all(spec.quant, spec.model.dtype)
        model.requires_grad_(True)
    else:
        where = adapter_place(spec)
        config, dropped = adapter_config(
            spec.adapter, base.kind, max_steps=total_steps or spec.train.max_steps or UNKNOWN_BUDGET, where=where
        )
        naming.check(config, base.model, where)
        declared = config.to_dict()
        with randomness.seeded(spec.seed, "adapter"), quiet_peft():
            try:
                if method.wrap is not None:
                    model = method.wrap(base.model, config, _make(base.model, spec))
                    if not spec.model.autocast_adapter_dtype:
                        own.in_base_precision(model)
                else:
                    if shapes_only:
                        beginning.without(spec, config, base.model)
                    model, initial = _wrapped(base.model, config, spec, asked, calibration)
                method.verify(model, config)
                naming.check_matched(declared, config, model)
            except UserError as error:
                raise UserError(f"{where}: {error.message}", fix=error.fix) from error
            except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, re.error) as error:
                if ran_out_of_memory(error):
                    raise
                raise _refused(error, base.model, config, where) from error
            _check_filled_in(declared, config, where)
    if spec.model.compile:
        torch._inductor.config.force_disable_caches = True  # else the second run of a comparison gets its compile free
        model.compile(dynamic=True)
    base_names = frozenset(name for name, parameter in model.named_parameters() if id(parameter) in before)
    facts = {**base.facts, "dropped_adapter_keys": dropped}
    if method.extra_loss is None and not shapes_only:
        method = dataclasses.replace(method, extra_loss=_terms(model))
    built = dataclasses.replace(built_on(base, model, config, method, base_names, facts), initial=initial)
    trainable = built.trainable()
    empty = [name for name, parameter in trainable.items() if parameter.numel() == 0]
    if not trainable or empty:
        what = f"{empty[0]} is to be trained, and holds nothing" if empty else "nothing is trainable in this experiment"
        place = f"{adapter_place(spec)}: " if spec.adapter is not None else ""
        raise UserError(f"{place}{what}", fix="check the adapter's target_modules, numbers and lists of tokens")
    precision.check_trainable(trainable)
    return built


def _save_memory(model: Any, method: Method) -> None:
    if method.no_checkpointing is not None:
        raise UserError(
            f"model.gradient_checkpointing: this method does not work with it: {method.no_checkpointing}",
            fix="set model.gradient_checkpointing=false",
        )
    with quiet_peft():
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _wrapped(
    model: Any, config: Any, spec: RunSpec, asked: beginning.Asked | None, calibration: Calibration | None
) -> tuple[Any, Mapping[str, torch.Tensor]]:
    """peft's wrapping, in the hands of the start where there is one."""
    make = _make(model, spec)
    if asked is None:
        return make(config), {}
    assert calibration is not None or not asked.needs_calibration, "whoever trains prepares what the start reads"
    asked.start.fits(model, config)
    return asked.start.wrap(model, config, calibration, make)


def _make(model: Any, spec: RunSpec) -> Callable[[Any], Any]:
    """peft's own wrapping of the model, by a config."""
    import peft

    return lambda config: peft.get_peft_model(model, config, autocast_adapter_dtype=spec.model.autocast_adapter_dtype)


def _check_filled_in(declared: Mapping[str, Any], config: Any, where: str) -> None:
    """peft fills in what a config leaves open, and refuses some of that only when it loads the saved adapter.

    Judged only where peft takes the config as it was declared.
    """
    filled = config.to_dict()
    changed = [name for name in filled if filled[name] != declared.get(name)]
    if not changed or _refusal(config, declared) is not None:
        return
    reason = _refusal(config, filled)
    if reason is not None:
        named = [name for name in changed if name in reason] or changed
        shown = ", ".join(f"'{name}' (peft fills in {_shown(filled[name])})" for name in named)
        raise UserError(f"{where}: peft refuses this config: {reason}", fix=f"write {shown} yourself; [] for none")


def _refusal(config: Any, values: Mapping[str, Any]) -> str | None:
    try:
        type(config)(**values)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def _terms(model: Any) -> Callable[[Any, int], torch.Tensor] | None:
    """What peft leaves to whoever trains to add to the loss: by its convention, `_get_<name>_loss()` of the tuner.

    Such a function gives a plain 0.0 where the adapter has no part in it.
    """
    tuner = getattr(model, "base_model", None)
    names = [name for name in dir(type(tuner)) if re.fullmatch(r"_get_\w+_loss", name)]
    active = [name for name in names if isinstance(getattr(tuner, name)(), torch.Tensor)]
    if not active:
        return None
    return lambda model, step: torch.stack([getattr(model.base_model, name)() for name in active]).sum()


def _refused(error: Exception, model: nn.Module, config: Any, where: str) -> UserError:
    """peft's words, and as the fix what they are about: a value of the wrong type, the layers, or the value named."""
    reason = str(error).splitlines()[0][:400] if str(error) else type(error).__name__
    wrong = _wrong_types(config)
    if isinstance(error, re.error):
        wrong = [f"'{name}' (= {value!r})" for name, value in vars(config).items() if value == error.pattern]
    absent = [] if wrong or "None" not in reason else _absent(config)
    layer = re.search(r"Target module (\w+)\(.*is not supported", reason)
    fix = f"mend {', '.join(wrong or _meant(config, reason)) or 'the value that peft names'}"
    if layer is not None and not wrong:
        fix = f"this method takes no {layer[1]}: name other layers in target_modules, or choose another method"
    if absent:
        fix = f"give {' and '.join(absent)}, for which there is no default"
    if not wrong and "target" in reason.lower():
        layers = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        fix += f"; linear layers of this model: {', '.join(sorted(layers))}"
    return UserError(f"{where}: peft refuses this adapter for this model: {reason}", fix=fix)


def _wrong_types(config: Any) -> list[str]:
    """Values that are no number (or no whole one) where the setting's default is."""
    found: list[str] = []
    if not dataclasses.is_dataclass(config):  # a method's own config was checked when it was read
        return found
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        if type(default) not in (int, float) or value is None:
            continue
        if type(value) not in ((int,) if isinstance(default, int) else (int, float)):
            found.append(f"'{field.name}' (= {json.dumps(value, default=str)[:60]}, by default {default})")
    return found


def _absent(config: Any) -> list[str]:
    """Whole numbers that must be given, and were not."""
    if not dataclasses.is_dataclass(config):
        return []
    fields = dataclasses.fields(config)
    return [f"'{one.name}'" for one in fields if one.type in (int, "int") and getattr(config, one.name) is None]


def _meant(config: Any, reason: str) -> list[str]:
    """Settings that peft's words are about: their names stand in them (underscores or not), or else their numbers."""

    def stands(words: str) -> bool:
        return re.search(rf"\b{words}\b", reason, re.IGNORECASE) is not None

    given = {name: value for name, value in vars(config).items() if value is not None}
    found = [name for name in given if stands("[ _]".join(map(re.escape, name.split("_"))))]
    if not found:
        reason = re.sub(r"\b[A-Z]\w*\([^()]*\)", "", reason)  # a layer's own numbers, such as Linear(in_features=32)
        numbers = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
        found = [
            name
            for name, many in numbers.items()
            if any(type(n) in (int, float) and n > 1 and stands(re.escape(str(n))) for n in many)
        ]
    return [f"'{name}' (= {_shown(given[name])})" for name in found]


def _shown(value: Any) -> str:
    """The beginning of a value as the config's file has it; configs inside of configs as they show themselves."""
    return json.dumps(value, default=lambda one: sorted(one) if isinstance(one, set) else str(one))[:60]


class quiet_peft(warnings.catch_warnings):
    """peft warns of its own housekeeping (a renamed base path, a type hint); what matters we check ourselves."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", module=r"peft\..*")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")
        return entered
