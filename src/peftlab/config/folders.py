"""Reads an experiment as it lies on disk: a folder of JSON files or one YAML file, native or in a foreign dialect.

What comes out is plain data in our own shape; whether its values make sense is `loading.py`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftlab.config.settings import read_json, read_yaml
from peftlab.config.spec import ADAPTER_FILE
from peftlab.errors import UserError, nearest
from peftlab.foreign import Foreign, Native
from peftlab.protocols import find, names

PARAMETER_FILES = ("training_params.json", "training_parameters.json")
YAML_SUFFIXES = (".yaml", ".yml")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment in our own words, not yet checked.

    Attributes:
        name: `method/name` of the folder, or `folder/stem` of a YAML file.
        path: Its folder, or its YAML file.
        adapter: peft's config, or None for full fine-tuning.
        parameters: Groups of settings, `task` (a name, or a mapping as in a task file) and `seed`.
        where: What an error names as the place of a mistake.
        notes: What a translation wants the user to know.
        unready: What of it this version cannot do yet.
    """

    name: str
    path: Path
    adapter: dict[str, Any] | None
    parameters: dict[str, Any]
    where: str
    notes: tuple[str, ...] = ()
    unready: tuple[str, ...] = ()


def read(path: str | Path, *, dialect: str | None = None, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read the experiment at `path`, translated if it is written in a foreign dialect.

    Args:
        path: A folder `experiments/<method>/<name>/`, or a YAML file.
        dialect: The dialect it is written in; None: found out by looking.
        overrides: Settings that will be put over it; a translation may depend on them.

    Raises:
        UserError: There is no experiment, or its files cannot be read.
    """
    place = Path(path)
    if place.is_dir():
        found, name = _read_folder(place), _folder_name(place)
    elif place.suffix in YAML_SUFFIXES and place.is_file():
        found, name = _read_file(place), _file_name(place)
    else:
        raise UserError(
            f"experiment folder not found: {place}",
            fix=_similar_folder(place) or "give the path of a folder experiments/<method>/<name>/ or of a YAML file",
        )
    found = replace(found, overrides=dict(overrides or {}))
    spoken = dialect or _recognised(found)
    native = find("dialects", spoken, where="--dialect").to_native(found) if spoken else _native(found)
    return Experiment(
        name=name,
        path=place,
        adapter=native.adapter,
        parameters=dict(native.parameters),
        where=found.where,
        notes=native.notes,
        unready=native.unready,
    )


def shared_files() -> set[str]:
    """Names of files that lie above experiments of some dialect and are no experiment themselves."""
    return {file for name in names("dialects") for file in find("dialects", name).shared_files}


def _recognised(found: Foreign) -> str | None:
    for name in names("dialects"):
        if find("dialects", name).recognises(found):
            return name
    return None


def _native(found: Foreign) -> Native:
    parameters = dict(found.parameters or {})
    adapter = found.adapter
    if found.path.is_file():
        adapter = parameters.pop("adapter", None)
        if adapter is not None and not isinstance(adapter, dict):
            raise UserError(f"{found.where}: 'adapter' must be a mapping", fix="write peft's config below it")
    if adapter is not None and not isinstance(adapter.get("peft_type"), str):
        place = found.where if found.path.is_file() else found.path / ADAPTER_FILE
        raise UserError(f"{place}: 'peft_type' is required", fix='add for example "peft_type": "LORA"')
    return Native(parameters=parameters, adapter=dict(adapter) if adapter is not None else None)


def _read_file(path: Path) -> Foreign:
    return Foreign(path=path, parameters=read_yaml(path), adapter=None, where=str(path))


def _read_folder(folder: Path) -> Foreign:
    found = [name for name in PARAMETER_FILES if (folder / name).is_file()]
    if len(found) == 2:
        raise UserError(f"{folder} holds both {' and '.join(found)}", fix="they are one file under two names: keep one")
    known = {ADAPTER_FILE, *PARAMETER_FILES}
    for file in sorted(folder.glob("*.json")):
        if file.name not in known | shared_files():
            guess = nearest(file.name, known)
            fix = f"did you mean '{guess}'?" if guess else f"known files: {', '.join(sorted(known))}"
            raise UserError(f"unknown file in the experiment folder: {file}", fix=fix)
    adapter_path = folder / ADAPTER_FILE
    adapter = read_json(adapter_path) if adapter_path.is_file() else None
    if not found and adapter is None:
        inside = sorted(str(path.parent) for name in known for path in folder.glob(f"*/{name}"))
        fix = f"name one of those in it, such as {inside[0]}" if inside else f"add {PARAMETER_FILES[0]}"
        raise UserError(f"{folder} holds no experiment: no {PARAMETER_FILES[0]}, no {ADAPTER_FILE}", fix=fix)
    where = str(folder / (found[0] if found else PARAMETER_FILES[0]))
    parameters = read_json(folder / found[0]) if found else None
    return Foreign(path=folder, parameters=parameters, adapter=adapter, where=where)


def _folder_name(folder: Path) -> str:
    return _joined(folder.resolve().parts[-2:])


def _file_name(path: Path) -> str:
    return _joined((path.resolve().parent.name, path.stem))


def _joined(parts: tuple[str, ...]) -> str:
    for part in parts:
        if not _SAFE_NAME.fullmatch(part):
            raise UserError(f"the name '{part}' cannot name a result", fix="use letters, digits and . _ + = - only")
    return "/".join(parts)


def _similar_folder(folder: Path) -> str | None:
    """Every name of the path that is not there is replaced by the nearest one that is."""
    found = Path(folder.anchor)
    for name in folder.parts[len(found.parts) :]:
        guess: str | None = name
        if not (found / name).is_dir():
            guess = nearest(name, [child.name for child in found.iterdir() if child.is_dir()])
        if guess is None:
            return None
        found /= guess
    return f"did you mean '{found}'?"
