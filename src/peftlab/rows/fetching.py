"""Fills a mirror folder from the hub, for machines without a network: the splits that tasks and texts name.

Writes what `sources.read_mirror` reads: `mirror.json`, and one compressed JSON Lines file for each split. A split is
listed only when its file is whole, so whatever stops a fetch, the folder can be used and the fetch repeated.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftlab.config import references
from peftlab.config.settings import read_json
from peftlab.config.source import Source
from peftlab.config.task import PARTS, available, load
from peftlab.errors import UserError, unknown_name
from peftlab.records.atomic import write_atomic
from peftlab.rows import sources, texts
from peftlab.rows.sources import MIRROR_INDEX, Table, hub_name

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LOCK = ".fetch.lock"

State = Literal["fetched", "there already", "nothing to fetch"]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What became of one split that a task or a text names.

    Attributes:
        name: The hub id, with its subset; else what the rows are made of.
        split: The split, without a slice.
        state: Whether it was fetched now.
        rows: Rows fetched now.
        revision: The commit that the mirror says it holds, if that is known.
        partial: Whether only the first rows of the split were asked for.
    """

    name: str
    split: str
    state: State
    rows: int | None = None
    revision: str | None = None
    partial: bool = False


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """One split to be in the mirror; `first`: so many of its rows, None: all."""

    source: Source
    first: int | None = None


def fetch(
    names: Sequence[str], folder: Path, *, force: bool = False, tell: Callable[[str], None] = lambda text: None
) -> Iterator[Fetched]:
    """Bring the splits of tasks and general texts into a mirror folder, one after the other.

    Args:
        names: Tasks (by name or file) and texts that forgetting is measured on.
        folder: The mirror; made when absent.
        force: Download again what is there, and put another revision in the place of the one held.
        tell: Called with what is downloaded next.

    Raises:
        UserError: An unknown name, a folder that cannot be used, the network switched off, or a split that the hub has
            not. What was fetched before stays.
    """
    wanted = _all_wanted(names)
    _usable(folder)
    read_index(folder)
    for one in wanted:
        source = one.source
        if source.generator is not None:
            yield Fetched(name=f"generator {source.generator}", split=source.split_name, state="nothing to fetch")
        elif references.is_local(str(source.dataset)):
            yield Fetched(name=str(source.dataset), split=source.split_name, state="nothing to fetch")
        else:
            yield _fetch_one(one, folder, force=force, tell=tell)


def _all_wanted(names: Sequence[str]) -> list[_Wanted]:
    """Every split once, in the order of the names; a name that does not exist is said before anything is fetched."""
    found: dict[tuple[Any, ...], _Wanted] = {}
    for name in names:
        for one in _wanted(name):
            source = one.source
            key = (source.generator, source.dataset, source.subset, source.revision, source.split_name)
            before = found.get(key)
            if before is None or (before.first is not None and (one.first is None or one.first > before.first)):
                found[key] = one
    return list(found.values())


def _wanted(name: str) -> list[_Wanted]:
    if name in texts.available():
        text = texts.available()[name]
        return [_Wanted(source=text.source, first=text.rows)]
    if not name.endswith((".yaml", ".yml")) and name not in available():
        raise unknown_name("task or text", name, [*available(), *texts.available()])
    task = load(name)
    named = [getattr(task, part) for part in PARTS]
    return [_Wanted(source=one) for source in named if source is not None for one in source.each()]


# ------------------------------------------------------------------------------------------------------- one split


def _fetch_one(one: _Wanted, folder: Path, *, force: bool, tell: Callable[[str], None]) -> Fetched:
    source, split = one.source, one.source.split_name
    name = hub_name(source)
    _safe_names(source)
    entry = read_index(folder).get(name)
    if entry is not None and not force:
        held = entry.get("revision")
        if held and source.revision and held != source.revision:
            raise UserError(
                f"{folder} holds {name} at revision {held}, wanted is {source.revision}",
                fix="fetch into another folder, or replace what is there with --force",
            )
        if split in entry["splits"] and (one.first is not None or split not in entry.get("partial", [])):
            return Fetched(name=name, split=split, state="there already", revision=held)
        source = source.model_copy(update={"revision": source.revision or held})
    if off := sources.switched_off():
        raise UserError(
            f"fetching {name} (split '{split}') needs the network, which {' and '.join(off)} switches off",
            fix=f"unset {' and '.join(off)} for this command",
        )
    tell(f"fetching {name}, split {split}")
    table = sources.read_hub(source, one.first)
    revision = source.revision or table.origin.get("loaded_revision")
    partial = one.first is not None
    try:
        known = _store(folder, source, table, revision=revision, partial=partial)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error}", fix="check its permissions and the disk") from None
    return Fetched(name=name, split=split, state="fetched", rows=len(table.rows), revision=known, partial=partial)


def _store(folder: Path, source: Source, table: Table, *, revision: str | None, partial: bool) -> str | None:
    """Write the rows, then list them, one fetch at a time; returns the revision that the index now gives."""
    from filelock import FileLock  # imported late, as in claims.py

    split = source.split_name
    with FileLock(folder / _LOCK):
        index = read_index(folder)
        entry = _entry(index.get(hub_name(source)), source, revision)
        _write_rows(folder / entry["folder"], split, table, hub_name(source))
        parts = {name for name in entry.get("partial", []) if name != split} | ({split} if partial else set())
        splits = dict(sorted({**entry["splits"], split: _file(split)}.items()))
        index[hub_name(source)] = {**entry, "splits": splits, "partial": sorted(parts)}
        write_atomic(folder / MIRROR_INDEX, json.dumps(index, indent=1) + "\n")
    held: str | None = entry.get("revision")
    return held


def _entry(entry: Mapping[str, Any] | None, source: Source, revision: str | None) -> dict[str, Any]:
    """The entry that a split is added to. One entry is one revision, and unknown as soon as that of one split is.

    A new revision begins a new entry in a folder of its own, so that no file is overwritten that is still listed.
    """
    others = [name for name in entry["splits"] if name != source.split_name] if entry is not None else []
    if entry is not None and others and entry.get("revision") in (None, revision):
        return dict(entry)
    fresh: dict[str, Any] = {"folder": _place(source, revision), "splits": {}, "partial": []}
    return {**fresh, "revision": revision} if revision else fresh


def _safe_names(source: Source) -> None:
    """Names become folders and files: none may lead elsewhere."""
    for part in (*str(source.dataset).split("/"), *([str(source.subset)] if source.subset else []), source.split_name):
        if not _SAFE.fullmatch(part) or ".." in part:
            raise UserError(
                f"'{part}' of {hub_name(source)}, split '{source.split_name}', cannot name a file",
                fix="mend 'dataset', 'subset' or 'split' in the task file",
            )


def _place(source: Source, revision: str | None) -> str:
    """The folder of a data set at one revision, so that another never overwrites what the index still lists."""
    name = str(source.dataset).replace("/", "--") + (f"--{source.subset}" if source.subset else "")
    return f"{name}@{re.sub(r'[^A-Za-z0-9_.-]', '-', revision)[:12]}" if revision else name


def _write_rows(folder: Path, split: str, table: Table, name: str) -> None:
    """The whole file or none; the same rows give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / _file(split)
    writing = folder / f".{final.name}.{os.getpid()}.tmp"
    try:
        with open(writing, "wb") as raw:
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
                for number, row in enumerate(table.rows, start=1):
                    file.write(_line(row, f"{name}, split '{split}', row {number}"))
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(writing, final)
    finally:
        writing.unlink(missing_ok=True)


def _line(row: Any, where: str) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where} is no plain data, which a mirror cannot hold: {error}",
            fix="write the rows to a JSON Lines file yourself and name that in the task",
        ) from None


def _file(split: str) -> str:
    return f"{split}.jsonl.gz"


# ------------------------------------------------------------------------------------------------------- the index


def _usable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--to {folder} is a file, or lies below one", fix="name a folder") from None
    except OSError as error:
        raise UserError(f"--to {folder}: {error}", fix="name a folder that you may write to") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--to {folder} cannot be written to", fix="name a folder that you may write to")


def read_index(folder: Path) -> dict[str, Any]:
    """The entries of a mirror; none when the folder holds no index.

    Raises:
        UserError: The index cannot be read, or is not one.
    """
    path = folder / MIRROR_INDEX
    try:
        index = read_json(path) if path.is_file() else {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}", fix="check the file and its permissions") from None
    for name, entry in index.items():
        if not (isinstance(entry, dict) and isinstance(entry.get("splits"), dict) and _inside(entry.get("folder"))):
            raise UserError(
                f"{path}: the entry '{name}' lacks 'splits', or a 'folder' below the mirror",
                fix="mend or remove the entry",
            )
    return index


def _inside(place: Any) -> bool:
    return isinstance(place, str) and not Path(place).is_absolute() and ".." not in Path(place).parts
