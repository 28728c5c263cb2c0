"""What there is to choose from, without loading a model library: methods with typical learning rates, and settings.

peft's list of methods is read from its source text, because importing peft takes seconds and loads torch.
"""

from __future__ import annotations

import ast
import importlib.util
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from peftlab import protocols
from peftlab.config import spec, task
from peftlab.config.groups import GROUPS
from peftlab.config.settings import Settings, read_yaml
from peftlab.errors import UserError, unknown_name

_FACTS = Path(__file__).parents[1] / "methods" / "facts.yaml"
FULL = "full"


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """What is known of a method: where it comes from, and a learning rate that worked, with its source.

    `adapter` holds config keys that make a variant of its `peft_type`, or that peft has no default for; `peft_type` is
    null without an adapter. `fit` says which keys depend on the model's shapes, and how (`defaults.fitted`); `note` is
    what the user still has to decide, `refused` why no config can be written.
    """

    name: str
    peft_type: str | None
    origin: str
    learning_rate: float | None = None
    source: str | None = None
    adapter: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class SettingFacts:
    """One `key=value`: its dotted name, type, default as text, the key that it belongs to, and its meaning."""

    name: str
    type: str
    default: str
    key: str
    meaning: str


def peft_types() -> tuple[str, ...]:
    """Names of peft's adapter types, in alphabetical order; empty when peft is not installed or written differently."""
    found = importlib.util.find_spec("peft")
    if found is None or not found.submodule_search_locations:
        return ()
    path = Path(found.submodule_search_locations[0]) / "utils" / "peft_types.py"
    if not path.is_file():
        return ()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "PeftType":
            values = (item.value for item in node.body if isinstance(item, ast.Assign))
            return tuple(sorted(str(value.value) for value in values if isinstance(value, ast.Constant)))
    return ()


@cache
def methods() -> Mapping[str, MethodFacts]:
    """Every method by name: peft's types, their variants with known facts, full fine-tuning, and peftlab's own."""
    facts = read_yaml(_FACTS)
    types_by_name = {peft_type.lower(): peft_type for peft_type in peft_types()}
    own = set(protocols.names("methods"))
    result = {}
    for name in sorted({*types_by_name, *facts, *own, FULL}):
        known = facts.get(name, {})
        peft_type = _type_of(name, types_by_name)
        if peft_type is None and name != FULL and name not in own:
            continue
        result[name] = MethodFacts(
            name=name,
            peft_type=peft_type,
            origin=_origin(name, peft_type, own),
            learning_rate=known.get("learning_rate"),
            source=known.get("source"),
            adapter=known.get("adapter", {}),
            fit=known.get("fit", {}),
            note=known.get("note"),
            refused=known.get("refused"),
        )
    return result


def method(name: str) -> MethodFacts:
    """The facts of one method.

    Raises:
        UserError: No such method; a variant's short name is answered with its full one.
    """
    known = methods()
    if name in known:
        return known[name]
    variants = [other for other in known if other.endswith(f"_{name}")]
    if variants:
        raise UserError(f"unknown method '{name}'", fix=f"did you mean '{variants[0]}'?")
    raise unknown_name("method", name, known)


def _type_of(name: str, types_by_name: Mapping[str, str]) -> str | None:
    fitting = [known for known in types_by_name if name == known or name.startswith(f"{known}_")]
    return types_by_name[max(fitting, key=len)] if fitting else None


def _origin(name: str, peft_type: str | None, own: set[str]) -> str:
    if name == FULL:
        return "all weights"
    if peft_type is None:
        return "peftlab"
    return "peft + peftlab" if name in own else "peft"


# ------------------------------------------------------------------------------------------------------- settings


def settings() -> list[SettingFacts]:
    """Every setting that a command line or training_params.json may name, groups in the order of the files."""
    top = [_setting("", spec.RunSpec, name) for name in ("task", "seed")]
    groups = [_setting(f"{group}.", model, name) for group, model in GROUPS.items() for name in model.model_fields]
    return [*top, *groups]


def _setting(prefix: str, model: type[Settings], name: str) -> SettingFacts:
    info = model.model_fields[name]
    extra = info.json_schema_extra
    key = str(extra["key"]) if isinstance(extra, Mapping) else "none"
    shown = "(required)" if info.is_required() else _value_text(info.get_default(call_default_factory=True))
    if info.annotation is task.Task:
        return SettingFacts(name=name, type="text", default=shown, key=key, meaning="a task's name, or a YAML's path")
    return SettingFacts(
        name=prefix + name, type=type_text(info.annotation), default=shown, key=key, meaning=info.description or ""
    )


_PLAIN_TYPES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true/false",
    dict: "object",
    type(None): "null",
}


def type_text(annotation: Any) -> str:
    """A field's type as people read it.

    Example:
        >>> type_text(float | None), type_text(tuple[str, ...]), type_text(int | float)
        ('number or null', 'list of text', 'whole number or number')
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_text(argument) for argument in arguments)
    if origin in (tuple, list):
        return f"list of {type_text(arguments[0])}"
    return _PLAIN_TYPES.get(origin or annotation, str(annotation))


def _value_text(value: Any) -> str:
    import json

    return value if isinstance(value, str) and value else json.dumps(value)
