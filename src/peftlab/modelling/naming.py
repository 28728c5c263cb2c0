"""What an adapter's config names - modules, layers, parameters, tokens - held against the model that it is for.

The library passes over a name that matches nothing, and so adapts less than was asked for. Changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from peftlab.errors import UserError, nearest

_TOKENS = ("token_indices", "token_ids", "_tokens")
"""How settings of an adapter end that are lists of tokens."""
_WRAPPED = "base_model.model."
"""What the library puts before the names of a model's modules."""
_SHOWN = 12


def check(config: Any, model: Any, where: str) -> None:
    """Look at what shows before the adapter is put on: modules to save, and tokens.

    Raises:
        UserError: A module or a token is not there, or an embedding is to be trained twice.
    """
    there = [name for name, _ in model.named_modules()]
    _check_saved(config, there, where)
    _check_tokens(config, model, where)
    _check_once(config, model, there, where)


def check_matched(declared: Mapping[str, Any], config: Any, model: Any) -> None:
    """Look at the names that an adapter was put on by: each must match something.

    Args:
        declared: The config's values before the library filled in what was left open.
        config: The config as it is now.
        model: The adapted model.

    Raises:
        UserError: A name matches nothing at all.
    """
    there = [name.removeprefix(_WRAPPED) for name, _ in model.named_modules()]
    tuner = getattr(model, "base_model", None)
    modules = getattr(tuner, "targeted_module_names", None)
    parameters = getattr(tuner, "targeted_parameter_names", None) or []
    asked = declared.get("target_parameters")
    if set(asked or ()) == set(getattr(config, "target_parameters", None) or ()):  # else peft has put newer names there
        _check_names("target_modules", declared.get("target_modules"), there)
    _check_names("exclude_modules", declared.get("exclude_modules"), there)
    if modules is None:  # virtual tokens, or no method of peft's
        return
    _check_names("target_parameters", asked, parameters, known=[name for name, _ in model.named_parameters()])
    _check_layers(declared.get("layers_to_transform"), modules, there)
    for key, value in declared.items():
        if key.endswith("_pattern") and isinstance(value, Mapping):
            _check_pattern(key, value, [*modules, *parameters], there)


# ------------------------------------------------------------------------------------------------ before it is put on


def _check_saved(config: Any, there: Sequence[str], where: str) -> None:
    for name in _listed(getattr(config, "modules_to_save", None)):
        if not any(one.endswith(name) for one in there):  # as peft looks for it
            guess = nearest(name, {one.rpartition(".")[2] for one in there})
            raise UserError(
                f"{where}: modules_to_save names '{name}', which is no module of this model",
                fix=f"did you mean '{guess}'?" if guess else "leave it out, or name a module",
            )


def _check_tokens(config: Any, model: Any, where: str) -> None:
    """Tokens beyond the vocabulary show in no shape, only when their rows are looked up."""
    size = model.get_input_embeddings().weight.shape[0]
    for key, value in vars(config).items():
        if not key.endswith(_TOKENS):
            continue
        lists = list(value.values()) if isinstance(value, dict) else [value]
        wrong = [one for many in lists if isinstance(many, list) for one in many if not _is_token(one, size)]
        if wrong:
            raise UserError(
                f"{where}: {key} names token {wrong[0]}, and the model has tokens 0 to {size - 1}",
                fix=f"mend '{key}' (= {json.dumps(value)[:60]})",
            )


def _is_token(value: Any, size: int) -> bool:
    return not isinstance(value, int) or 0 <= value < size


def _check_once(config: Any, model: nn.Module, there: Sequence[str], where: str) -> None:
    """An embedding that is saved whole takes no single tokens; peft finds that only by equal names, or as it runs."""
    tokens = getattr(config, "trainable_token_indices", None)
    if not tokens:
        return
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    keys = list(tokens) if isinstance(tokens, Mapping) else []
    names = [name for name in there if name.endswith(tuple(keys))] if keys else []
    names += [name for name, module in model.named_modules() if module is embedding and not keys]
    for saved in _listed(getattr(config, "modules_to_save", None)):
        if any(name.endswith(saved) for name in names):
            raise UserError(
                f"{where}: modules_to_save trains all rows of '{saved}', and trainable_token_indices some of them",
                fix=f"leave one of the two out: modules_to_save '{saved}', or trainable_token_indices",
            )


# ------------------------------------------------------------------------------------------------- after it is put on


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else sorted(value or (), key=str)


def _check_names(key: str, value: Any, there: Sequence[str], *, known: Sequence[str] | None = None) -> None:
    """Whole names, or their ends after a dot; a text is an expression, which peft refuses if no target matches it."""
    if isinstance(value, str):
        if key == "exclude_modules" and not any(re.fullmatch(value, name) for name in there):
            raise _matches_nothing(key, value, [], "the whole name of a module")
        return
    for one in _listed(value):
        if not any(name == one or name.endswith(f".{one}") for name in there):
            parts = str(one).count(".") + 1
            ends = {".".join(name.split(".")[-parts:]) for name in known or there}
            raise _matches_nothing(key, one, ends, "the end of a name in this model")


def _check_layers(value: Any, modules: Iterable[str], there: Iterable[str]) -> None:
    """Numbers of layers, each of which must hold a target."""
    if value is None:
        return
    reached = {part for name in modules for part in name.split(".") if part.isdigit()}
    for index in [value] if isinstance(value, int) else value:
        if str(index) not in reached:
            last = max((int(part) for name in there for part in name.split(".") if part.isdigit()), default=0)
            raise UserError(
                f"layers_to_transform names layer {index}, which holds none of the target modules",
                fix=f"name layers that do; the model's numbers go from 0 to {last}",
            )


def _check_pattern(key: str, patterns: Mapping[str, Any], targets: Sequence[str], there: Sequence[str]) -> None:
    """Keys as peft matches them (`peft.utils.other.get_pattern_key`): a name's end, or an expression for it."""
    for pattern, value in patterns.items():
        if isinstance(value, list | tuple):  # what a method wrote there as it trained: a mask for each rank
            continue
        expression = re.compile(rf"(.*\.)?({pattern})$")
        if any(map(expression.match, targets)):
            continue
        if any(map(expression.match, there)):
            raise UserError(
                f"{key} names '{pattern}', which is none of the target modules",
                fix="leave it out, or name it in target_modules too",
            )
        ends = {name.rpartition(".")[2] for name in targets}
        raise _matches_nothing(key, pattern, ends, "the end of a name that the adapter is put on")


def _matches_nothing(key: str, name: Any, known: Iterable[str], what: str) -> UserError:
    options = sorted(known)
    guess = nearest(str(name), options)
    shown = ", ".join(options[:_SHOWN]) + (", ..." if len(options) > _SHOWN else "")
    fix = f"did you mean '{guess}'?" if guess else "leave it out" + (f", or name one of: {shown}" if shown else "")
    return UserError(f"{key} names '{name}', which matches nothing: it is not {what}", fix=fix)
