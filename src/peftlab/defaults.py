"""A method's default adapter config as plain data, to start an experiment from. Builds and loads no model.

The values are peft's own; what is empty by default is left out, so that the file says what it means.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from peftlab.errors import UserError, unknown_name
from peftlab.groups import ModelSettings
from peftlab.spec import BOOKKEEPING

ALL_LINEAR = "all-linear"


def default_adapter(method: str, model: str | None) -> dict[str, Any]:
    """The config of a peft type (its name in lower case), fitted to the model where peft does not know that model.

    Args:
        method: A peft type, such as those of `peftlab list methods`.
        model: A model reference; None: nothing is fitted.

    Raises:
        UserError: peft has no such type.
    """
    import peft

    classes = {str(peft_type.value): cls for peft_type, cls in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if method.upper() not in classes:
        raise unknown_name("method", method, [name.lower() for name in classes])
    config: dict[str, Any] = {"peft_type": method.upper()}
    fields = dataclasses.fields(classes[method.upper()])
    for one in fields:
        value = _plain(one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default)
        if one.name not in (*BOOKKEEPING, "peft_type", "task_type") and value not in (None, {}, []):
            config[one.name] = value
    if (
        any(one.name == "target_modules" for one in fields)
        and "target_modules" not in config
        and _unknown_to_peft(model)
    ):
        config["target_modules"] = ALL_LINEAR
    return config


def _plain(value: Any) -> Any:
    """JSON data; None for anything that is not a setting (run-time objects, fields without a default)."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, set | frozenset | list | tuple):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool) else None


def _unknown_to_peft(model: str | None) -> bool:
    """Whether peft has no list of target modules for this kind of model; False when the model cannot be looked at."""
    if model is None:
        return False
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    from peftlab.counting import load_config

    try:
        config = load_config(ModelSettings(id=model))
    except UserError:
        return False
    return config.model_type not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
