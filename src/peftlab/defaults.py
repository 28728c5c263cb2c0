"""A method's default adapter config as plain data, to start an experiment from, fitted to a model's shapes.

The values are the library's own; what is empty by default is left out, so that the file says what it means. Loads no
weights. How a method is fitted stands in `methods/facts.yaml`; here is what the words there do.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peftlab.config.groups import ModelSettings
from peftlab.config.spec import BOOKKEEPING
from peftlab.errors import UserError, unknown_name
from peftlab.protocols import find, names

ALL_LINEAR = "all-linear"
_FILLED_IN = (*BOOKKEEPING, "peft_type", "task_type")


def default_adapter(method: str, model: str | None) -> dict[str, Any]:
    """The config of a peft type or an own method (its name in lower case), with targets where its library knows none.

    Args:
        method: A peft type, such as those of `peftlab list methods`.
        model: A model reference; None: nothing is fitted.

    Raises:
        UserError: There is no such type.
    """
    import peft

    classes = {str(peft_type.value): cls for peft_type, cls in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    own = find("methods", method).config if method in names("methods") else None
    if own is None and method.upper() not in classes:
        raise unknown_name("method", method, [name.lower() for name in (*classes, *names("methods"))])
    config: dict[str, Any] = {"peft_type": method.upper()}
    fields = _own_fields(own) if own is not None else _fields(classes[method.upper()])
    config.update({name: value for name, value in fields.items() if value not in (None, {}, [])})
    open_targets = own is None and "target_modules" in fields and "target_modules" not in config
    if open_targets and _unknown_to_peft(method.upper(), model):
        config["target_modules"] = ALL_LINEAR
    return config


def _fields(config_class: Any) -> dict[str, Any]:
    values = {}
    for one in dataclasses.fields(config_class):
        default = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
        if one.name not in _FILLED_IN:
            values[one.name] = _plain(default)
    return values


def _own_fields(config_class: Any) -> dict[str, Any]:
    found = {name: field.get_default() for name, field in config_class.model_fields.items()}
    return {name: _plain(value) for name, value in found.items() if name not in _FILLED_IN}


def _plain(value: Any) -> Any:
    """JSON data; None for anything that is not a setting (run-time objects, fields without a default)."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, set | frozenset | list | tuple):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool) else None


def _unknown_to_peft(peft_type: str, model: str | None) -> bool:
    """Whether peft has no target modules of this type for this kind of model; False when the model cannot be seen."""
    usual = _usual_targets(peft_type)
    config = _model_config(model) if usual else None  # a type without such a list looks for its targets by itself
    return config is not None and config.model_type not in usual


def _usual_targets(peft_type: str) -> Mapping[str, Any]:
    """From a kind of model to the modules that peft takes for a type when the config names none; may be empty."""
    import peft
    from peft.utils import constants

    tuners = {str(one.value): tuner for one, tuner in peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING.items()}
    apart = getattr(constants, f"TRANSFORMERS_MODELS_TO_{peft_type}_TARGET_MODULES_MAPPING", {})
    found: Mapping[str, Any] = getattr(tuners.get(peft_type), "target_module_mapping", None) or apart
    return found


def _model_config(model: str | None) -> Any:
    if model is None:
        return None
    from peftlab.modelling.counting import load_config

    try:
        return load_config(ModelSettings(id=model))
    except UserError:
        return None


# ------------------------------------------------------------------------------------------------ fitted to a model


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What of a model a config has to fit.

    Attributes:
        layers: Hidden layers.
        weights: [rows, columns] of the weights of the target modules.
        norms: Last parts of the names of its norms.
        tokens: Ids of the tokens that begin and end a text, where the model or its tokenizer has them.
    """

    layers: int
    weights: tuple[tuple[int, int], ...]
    norms: tuple[str, ...]
    tokens: tuple[int, ...]


def fitted(config: Mapping[str, Any], rules: Mapping[str, str], model: str | None) -> dict[str, Any]:
    """The config with the values of some keys changed to what the model's shapes allow.

    Args:
        config: As `default_adapter` gives it.
        rules: A key to a word: `divides` (every side of every target weight), `width` (at most the smallest side),
            `area` (at most the numbers in the smallest weight), `budget` (as a rank, at most those numbers), `layers`
            (at most as many), `norms` (their names, unless the library knows them), `tokens` (begin and end of a
            text), `nothing` (empty beside given targets).
        model: A model reference; None, or a model that is not at hand: the config stays as it is.
    """
    found = _model_config(model)
    if found is None or not rules:
        return dict(config)
    shapes = _shapes(config, found, str(model))
    changed = {key: _RULES[rule](config.get(key), shapes, config) for key, rule in rules.items()}
    return {**config, **{key: value for key, value in changed.items() if value is not None}}


def _shapes(config: Mapping[str, Any], model_config: Any, model: str) -> Shapes:
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        body = AutoModel.from_config(model_config)
    wanted = config.get("target_modules") or _usual_targets(str(config["peft_type"])).get(model_config.model_type)
    modules = dict(body.named_modules())
    targets = [module for path, module in modules.items() if _is_target(path, module, wanted or ALL_LINEAR)]
    norms = {path.rpartition(".")[2] for path, module in modules.items() if "norm" in type(module).__name__.lower()}
    return Shapes(
        layers=model_config.num_hidden_layers,
        weights=tuple((int(module.weight.shape[0]), int(module.weight.shape[1])) for module in targets),
        norms=tuple(sorted(norms)),
        tokens=_tokens(model_config, model),
    )


def _tokens(model_config: Any, model: str) -> tuple[int, ...]:
    """Of the model's config, else of its tokenizer: an encoder's stand there alone, under other names."""
    from peftlab.modelling import models

    found = [getattr(model_config, name, None) for name in ("bos_token_id", "eos_token_id")]
    if found == [None, None]:
        try:
            tokenizer = models.load_tokenizer(ModelSettings(id=model))
        except UserError:
            return ()
        found = [tokenizer.bos_token_id or tokenizer.cls_token_id, tokenizer.eos_token_id or tokenizer.sep_token_id]
    return tuple(dict.fromkeys(token for token in found if isinstance(token, int)))


def _is_target(path: str, module: Any, wanted: Any) -> bool:
    if getattr(getattr(module, "weight", None), "ndim", 0) != 2:
        return False
    if wanted == ALL_LINEAR:
        return "embed" not in type(module).__name__.lower()
    if isinstance(wanted, str):
        return re.fullmatch(wanted, f"model.{path}") is not None
    return any(f".{path}".endswith(f".{one}") for one in wanted)


def _divides(value: Any, shapes: Shapes, config: Mapping[str, Any]) -> Any:
    common = math.gcd(*(side for weight in shapes.weights for side in weight))
    return max((number for number in range(1, value + 1) if common % number == 0), default=value)


def _width(value: Any, shapes: Shapes, config: Mapping[str, Any]) -> Any:
    return min([value, *(side for weight in shapes.weights for side in weight)])


def _area(value: Any, shapes: Shapes, config: Mapping[str, Any]) -> Any:
    return min([value, *(rows * columns for rows, columns in shapes.weights)])


def _budget(value: Any, shapes: Shapes, config: Mapping[str, Any]) -> Any:
    return min([value, *(max(1, rows * columns // (rows + columns)) for rows, columns in shapes.weights)])


def _norms(value: Any, shapes: Shapes, config: Mapping[str, Any]) -> Any:
    return list(shapes.norms) if value == ALL_LINEAR else value


_RULES: Mapping[str, Callable[[Any, Shapes, Mapping[str, Any]], Any]] = {
    "divides": _divides,
    "width": _width,
    "area": _area,
    "budget": _budget,
    "layers": lambda value, shapes, config: min(value, shapes.layers),
    "norms": _norms,
    "tokens": lambda value, shapes, config: list(shapes.tokens) or None,
    "nothing": lambda value, shapes, config: [] if config.get("target_modules") else value,
}


# ------------------------------------------------------------------------------------- layers that a type does not take


def check_layers(config: Mapping[str, Any], model: str | None) -> None:
    """See that the type takes the layers of a model that writes its linear layers transposed, where it does.

    Args:
        config: An adapter's config, fitted.
        model: A model reference; None, or a model that is not at hand: nothing is looked at.

    Raises:
        UserError: The type refuses them, so that no config with these targets can be trained.
    """
    import peft
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    from peftlab.modelling import adapting, models

    found = _model_config(model)
    if found is None or type(found) not in AutoModelForCausalLM._model_mapping:
        return
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(found, dtype=torch.float32)
    if not any(isinstance(module, Conv1D) for module in base.modules()):
        return
    try:
        method = adapting.method_of(config)
        asked, _ = adapting.adapter_config(config, "causal", max_steps=models.UNKNOWN_BUDGET)
        with torch.device("meta"), adapting.quiet_peft():
            (method.wrap or _plain_wrap)(base, asked, lambda one: peft.get_peft_model(base, one))
    except (UserError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
        if Conv1D.__name__ not in str(error):  # whatever else is wrong shows when it is checked
            return
        raise UserError(
            f"no config can be written for {str(config['peft_type']).lower()} on this model: it takes no "
            f"{Conv1D.__name__}, which the model's linear layers are",
            fix="choose another method, or write a config by hand whose target_modules are plain linear layers",
        ) from error


def _plain_wrap(base: Any, config: Any, make: Callable[[Any], Any]) -> Any:
    return make(config)
