"""Strict pydantic models whose fields carry a meaning, a key class and a frozen baseline; readable errors.

Knows nothing of runs or tasks: `task.py` and `spec.py` declare their fields with it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from peftlab.errors import UserError, nearest

KeyClass = Literal["train", "eval", "none"]
_SAME_AS_DEFAULT = object()
_MAX_CONFIG_BYTES = 1_000_000

SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings(BaseModel):
    """A frozen group of settings; unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def setting(
    default: Any = ..., help: str = "", *, key: KeyClass = "train", baseline: Any = _SAME_AS_DEFAULT, **constraints: Any
) -> Any:
    """Declare a field.

    Args:
        default: The value used when nothing is given.
        help: One sentence, shown by `peftlab list settings`.
        key: Which key the field belongs to: `train` (it can change weights or curve), `eval`, or `none`.
        baseline: The value that reproduces behaviour before the field existed. A field at its baseline stays out of
            the hash. It never changes once released, even when `default` does.
        **constraints: Pydantic's (`gt`, `ge`, ...).
    """
    value = default if baseline is _SAME_AS_DEFAULT else baseline
    plain = list(value) if isinstance(value, tuple) else value  # as it is dumped
    extra = {"key": key, "baseline": None if value is ... else plain}
    return Field(default=default, description=help, json_schema_extra=extra, **constraints)


def declared(group: Settings, key: KeyClass) -> dict[str, Any]:
    """The fields of `group` that belong to `key` and differ from their baseline, as plain data."""
    plain = group.model_dump(mode="json")
    result = {}
    for name, field in type(group).model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict), f"{type(group).__name__}.{name} is not declared with setting()"
        if extra["key"] == key and plain[name] != extra["baseline"]:
            result[name] = plain[name]
    return result


def validated(model: type[SettingsT], data: Mapping[str, Any], *, where: str, fix: str | None = None) -> SettingsT:
    """Build `model` from `data`; every mistake becomes one `UserError` that names key, value and nearest key."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        lines = [f"{where}: {_line(model, detail)}" for detail in error.errors(include_url=False)]
        raise UserError("\n".join(dict.fromkeys(lines)), fix=fix) from None


def _line(model: type[Settings], detail: ErrorDetails) -> str:
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        guess = nearest(path[-1], known)
        hint = f"did you mean '{guess}'?" if guess else f"known keys: {', '.join(sorted(known))}"
        return f"unknown key '{key}'; {hint}"
    if detail["type"] == "missing":
        return f"'{key}' is required"
    if not key:
        return detail["msg"].removeprefix("Value error, ")
    return f"'{key}' = {json.dumps(detail['input'], default=str)[:80]}: {detail['msg'].removeprefix('Value error, ')}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    current: type[BaseModel] | None = model
    for part in path:
        field = current.model_fields.get(part) if current else None
        current = _model_in(field.annotation) if field else None
    return list(current.model_fields) if current else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found:
            return found
    return None


# ------------------------------------------------------------------------------------------------- reading files


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a config file; duplicate keys, NaN, infinity and huge files are errors."""
    text = _text(path)
    try:
        data = json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}", fix="mend the file at the place named") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not an object", fix="write it as {...}")
    return data


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_OTHERWISE_IN_1_2 = (_BOOL, _FLOAT, "tag:yaml.org,2002:timestamp")


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML (no Python objects) that refuses a key given twice and reads plain words as YAML 1.2 does.

    In version 1.1, which the library reads, `eval_strategy: no` is false and `learning_rate: 2e-4` is text.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag not in _OTHERWISE_IN_1_2]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.MarkedYAMLError(problem="a key is a list or a mapping", problem_mark=key_node.start_mark)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"key '{key}' is given twice", problem_mark=key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_StrictLoader.add_implicit_resolver(_BOOL, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_StrictLoader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"([-+]?(\.\d+|\d+\.\d*|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", re.ASCII),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping from a config file: data only, no Python tags, no key twice."""
    try:
        data = yaml.load(_text(path), Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {error}", fix="mend the file at the place named") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no mapping", fix="write it as `key: value` lines")
    return data


def _text(path: Path) -> str:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise UserError(f"{path} is larger than {_MAX_CONFIG_BYTES} bytes", fix="is this really a config file?")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}", fix="save it as UTF-8") from None


def _object(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise UserError(f"{path}: key '{key}' is given twice", fix="keep one of the two")
        if any(isinstance(one, float) and not math.isfinite(one) for one in _flat(value)):
            raise UserError(f"{path}: '{key}' = {json.dumps(value)[:80]} is not a finite number", fix="write a number")
        result[key] = value
    return result


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for one in value:
            yield from _flat(one)
    else:
        yield value
