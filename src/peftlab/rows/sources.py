"""Read the rows of one source: from a mirror folder, a local file, the hub or a generator.

Gives whole splits as plain rows, and says where they came from. Which rows a part takes of a split, and what parts may
share, is `data.py`'s work. Only a hub id that no mirror answers asks for the network.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.config import references
from peftlab.config.settings import read_json
from peftlab.config.source import Row, Source, local_file
from peftlab.digest import file_digest
from peftlab.errors import UserError, unknown_name
from peftlab.rows.rowfiles import read_rows

MIRROR_VARIABLE = "PEFTLAB_MIRROR"
MIRROR_INDEX = "mirror.json"
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
GENERATOR_LIBRARY = "reasoning-gym"

_SPLIT = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
_COMMIT = re.compile(r"@([0-9a-f]{40})/")


@dataclass(frozen=True, kw_only=True)
class Table:
    """All rows of one split (or of one generator), before any slice.

    Attributes:
        rows: Plain rows in file order.
        origin: Where they came from; goes into the record.
        partial: Whether they are declared to be only a part of the published split.
    """

    rows: Sequence[Row]
    origin: Mapping[str, Any]
    partial: bool = False


def read(source: Source, *, first: int | None = None) -> Table:
    """Read a source: a generator, a local file, the mirror that PEFTLAB_MIRROR names, or the hub, in this order.

    With `first`, the hub is asked for so many rows only; the others may give more.

    Raises:
        UserError: Anything absent, unreadable or unreachable, with what to do about it.
    """
    if source.generator is not None:
        return _generated(source)
    if isinstance(source.subset, tuple):
        return _joined([read(one, first=first) for one in source.each()])
    path = local_file(source)
    if path is not None:
        origin = {"from": "file", "file": path.name, "split": source.split, "content": _content(path)}
        return Table(rows=read_rows(path), origin=origin)
    return read_mirror(source) or read_hub(source, first)


def _joined(tables: Sequence[Table]) -> Table:
    """Several subsets as one table, in their order."""
    rows = [row for table in tables for row in table.rows]
    origins = [dict(table.origin) for table in tables]
    common = {name: value for name, value in origins[0].items() if all(one.get(name) == value for one in origins)}
    return Table(rows=rows, origin={**common, "subsets": origins}, partial=any(table.partial for table in tables))


# ------------------------------------------------------------------------------------------------------- slices


def window(split: str, num_rows: int) -> range:
    """Row numbers that a split with an optional slice means: `train`, `train[:1000]`, `train[-5:]`, `train[10%:20%]`.

    Percentages round to the nearest row, as the `datasets` library does, so that adjoining slices share no row.

    Raises:
        UserError: The slice cannot be read, reaches beyond the rows there are, or is empty.
    """
    match = _SPLIT.fullmatch(split)
    bounds = [match[name] for name in ("start", "stop") if match[name]] if match else []
    if match is None or len({bound.endswith("%") for bound in bounds}) > 1:
        raise UserError(
            f"cannot read the split '{split}'", fix="write train, train[:1000], train[10:20], train[-5:] or train[:10%]"
        )
    start = _bound(match["start"], num_rows, 0, split)
    stop = _bound(match["stop"], num_rows, num_rows, split)
    if start >= stop:
        fix = "mend the slice" if "[" in split else "name another split, or mend the data"
        raise UserError(f"split '{split}' is an empty data set: it has {num_rows} rows", fix=fix)
    return range(start, stop)


def between(source: Source, rows: Sequence[Row], numbers: Sequence[int]) -> Sequence[int]:
    """The row numbers whose rows have the numbers that the source's `between` asks for, in order.

    Raises:
        UserError: A row has no whole number there, or none is left.
    """
    for column, (low, high) in source.between.items():
        for number in numbers:
            value = rows[number].get(column)
            if not isinstance(value, int) or isinstance(value, bool):
                raise UserError(
                    f"'between' asks for whole numbers in column '{column}', a row has {str(value)[:80]!r}",
                    fix=f"name another column; the row has {sorted(rows[number])}",
                )
        numbers = [number for number in numbers if low <= rows[number][column] <= high]
        if not numbers:
            raise UserError(f"no row has '{column}' between {low} and {high}", fix="mend 'between' in the task")
    return numbers


def _bound(text: str | None, num_rows: int, default: int, split: str) -> int:
    if text is None:
        return default
    number = int(text.rstrip("%"))
    if text.endswith("%"):
        number = round(number * num_rows / 100)
    position = number + num_rows if text.startswith("-") else number
    if not 0 <= position <= num_rows:
        raise UserError(
            f"split '{split}' reaches beyond the data: there are {num_rows} rows", fix=f"slice within 0 and {num_rows}"
        )
    return position


def _content(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}", fix="check the file and its permissions") from None


# ------------------------------------------------------------------------------------------------------- mirror


def read_mirror(source: Source) -> Table | None:
    """The split out of the mirror folder, or None when there is no mirror or the mirror has not this data set.

    Raises:
        UserError: The mirror has the data set but not this split: a part of a split is used only when it is named.
    """
    entry, root = _mirror_entry(source)
    if entry is None:
        return None
    splits, partial = entry["splits"], entry.get("partial", [])
    if source.split_name not in splits:
        shown = ", ".join(name + (" (a part)" if name in partial else "") for name in sorted(splits))
        raise UserError(
            f"the mirror has no split '{source.split_name}' of {hub_name(source)}; it has: {shown}",
            fix="name one of these where the split is named (a task's 'split'; a YAML's dataset.train_split, "
            "eval_split or test_split), or for training rows with data.train_split=NAME: a part is used only when "
            f"it is named; or unset {MIRROR_VARIABLE}",
        )
    held = entry.get("revision")
    if held and source.revision and held != source.revision:
        raise UserError(
            f"the mirror holds {hub_name(source)} at revision {held}, the task declares {source.revision}",
            fix=f"fetch the declared revision into the mirror, or unset {MIRROR_VARIABLE}",
        )
    path = root / entry["folder"] / splits[source.split_name]
    rows = read_rows(path)
    origin = {
        **_declared(source),
        "from": "mirror",
        "content": _content(path),
        "loaded_revision": held,
    }
    return Table(rows=rows, origin=origin, partial=source.split_name in partial)


def _mirror_entry(source: Source) -> tuple[dict[str, Any] | None, Path]:
    index, root = _mirror_index()
    entry = index.get(hub_name(source))
    if entry is not None and not (isinstance(entry, dict) and {"folder", "splits"} <= set(entry)):
        raise UserError(
            f"{root / MIRROR_INDEX}: the entry '{hub_name(source)}' lacks 'folder' or 'splits'", fix="mend the entry"
        )
    return entry, root


def _mirror_index() -> tuple[dict[str, Any], Path]:
    folder = os.environ.get(MIRROR_VARIABLE, "")
    if not folder:
        return {}, Path()
    path = Path(folder).expanduser() / MIRROR_INDEX
    try:
        if path.is_file():
            return read_json(path), path.parent
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}", fix="check the file and its permissions") from None
    raise UserError(
        f"{MIRROR_VARIABLE} names {folder}, which holds no {MIRROR_INDEX}", fix="mend or unset the variable"
    )


def hub_name(source: Source) -> str:
    """The name of a hub data set with its subset, as a mirror's index has it."""
    subset = "+".join(source.subset) if isinstance(source.subset, tuple) else source.subset
    return f"{source.dataset}:{subset}" if subset else str(source.dataset)


def _declared(source: Source) -> dict[str, Any]:
    return {
        "dataset": source.dataset,
        "subset": source.subset,
        "split": source.split,
        "declared_revision": source.revision,
        "pinned": references.is_commit(source.revision),
    }


# ---------------------------------------------------------------------------------------------------------- hub


def read_hub(source: Source, first: int | None = None) -> Table:
    """The split by the `datasets` library: over the network, or out of its cache when the network is switched off.

    Raises:
        UserError: The library is not installed, or the split cannot be had.
    """
    if Path(str(source.dataset)).exists():
        # the library would silently take the folder, whose content no key would name
        raise UserError(
            f"dataset '{source.dataset}' may mean a hub id, or the file or folder of that name here",
            fix=f"write ./{source.dataset} for what is here, or start from another place for the hub id",
        )
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"reading {hub_name(source)} from the hub needs the 'datasets' library",
            fix=f"pip install 'peftlab[hub]', or set {MIRROR_VARIABLE} to a folder that holds the data",
        ) from None
    try:
        few = {"streaming": True} if first is not None else {}  # else the whole of a large set would be fetched
        data = datasets.load_dataset(
            source.dataset, source.subset, revision=source.revision, split=source.split_name, **few
        )
        rows = [dict(row) for row in (data.take(first) if first is not None else data)]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreachable(source, error) from error
    checksums = getattr(data.info, "download_checksums", None) or {}
    commits = {match[1] for match in map(_COMMIT.search, checksums) if match}
    origin = {**_declared(source), "from": "hub", "loaded_revision": commits.pop() if len(commits) == 1 else None}
    return Table(rows=rows, origin=origin)


def _unreachable(source: Source, error: Exception) -> UserError:
    name = hub_name(source)
    fixes = [f"set {MIRROR_VARIABLE} to a folder that holds the data"]
    if switched_off():
        fixes.append(f"or unset {' and '.join(switched_off())}")
    else:
        fixes.append("or check the data set's id, subset, split and revision, the network, and the cache's permissions")
    near = [key for key in _mirror_index()[0] if key.partition(":")[0] == source.dataset]
    if near:
        fixes.append(f"or name a subset that the mirror has: {', '.join(near)}")
    return UserError(f"cannot read {name} (split '{source.split_name}') from the hub: {error}", fix=", ".join(fixes))


def switched_off() -> list[str]:
    """The variables by which the user has switched the network off for the hub's libraries."""
    return [variable for variable in OFFLINE_VARIABLES if os.environ.get(variable, "").upper() in _TRUE]


_TRUE = ("1", "TRUE", "YES", "ON")


# --------------------------------------------------------------------------------------------------- generators


def _generated(source: Source) -> Table:
    """Rows of a reasoning-gym generator; its metadata become columns beside `question` and `answer`."""
    installed = _generator_version(source)
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    name = str(source.generator)
    if name not in DATASETS:
        raise unknown_name("generator", name, DATASETS)
    clash = sorted({"seed", "size"} & set(source.options))
    if clash:
        raise UserError(f"generator '{name}': {clash} stands in 'options'", fix="give it beside 'options'")
    try:
        entries = reasoning_gym.create_dataset(name, seed=source.seed, size=source.size, **source.options)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"generator '{name}' refuses its options: {error}", fix="mend 'options' in the task") from None
    rows = [
        {**(entry.get("metadata") or {}), "question": entry["question"], "answer": entry["answer"]} for entry in entries
    ]
    origin = {
        "from": "generator",
        "generator": name,
        "options": dict(source.options),
        "seed": source.seed,
        "size": source.size,
        "version": installed,
        "pinned": source.version is not None,
    }
    return Table(rows=rows, origin=origin)


def _generator_version(source: Source) -> str:
    """The installed version: it must be the declared one, since another may generate other rows from one seed."""
    try:
        installed = importlib.metadata.version(GENERATOR_LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"generator '{source.generator}' needs the library {GENERATOR_LIBRARY}",
            fix="pip install 'peftlab[generators]'",
        ) from None
    if source.version is not None and source.version != installed:
        raise UserError(
            f"generator '{source.generator}': {GENERATOR_LIBRARY} {installed} is installed, not {source.version}",
            fix=f"pip install {GENERATOR_LIBRARY}=={source.version}",
        )
    return installed
