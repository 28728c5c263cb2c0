"""Results that travel: records written in a foreign format, and foreign results read in as records.

Whole or not at all: everything is translated before the first file is written. What a foreign format's fields mean is
its dialect's business; nothing is computed or judged here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftlab.config.settings import read_json
from peftlab.config.spec import method_name
from peftlab.errors import UserError
from peftlab.foreign import Dialect, ForeignItems
from peftlab.protocols import find
from peftlab.records.atomic import read_text, safe_name, write_atomic
from peftlab.records.payload import EVALUATIONS, PROGRESS, read_curve, read_progress, read_samples, write_evaluation
from peftlab.records.record import Evaluation, Record, from_json, to_json
from peftlab.records.store import RunStore


@dataclass(frozen=True, kw_only=True)
class Travelled:
    """One file or record in its new place; `new` is false when it was there already. `left_out` says why not."""

    record: Record
    path: Path | None = None
    new: bool = False
    left_out: UserError | None = None


# ---------------------------------------------------------------------------------------------------------- export


def export(store: RunStore, references: Sequence[str], *, dialect: str, folder: Path) -> list[Travelled]:
    """Write runs as results of a foreign format below `folder`.

    Args:
        store: Where the runs lie.
        references: As `store.find` takes them; none: every run that can be expressed, the others are named.
        dialect: The format.
        folder: Where to; a file that is there with other content is never replaced.

    Raises:
        UserError: A named run that the format cannot express, names that collide, or nothing to export.
    """
    plugin = _speaking(dialect, ("export_result", "export_files"), "no results can be written in it")
    named = [record for reference in references for record in store.find(reference)]
    records = {record.key: record for record in (named if references else store.records())}
    left_out: list[Travelled] = []
    planned: dict[Path, tuple[Record, str]] = {}
    for record in records.values():
        try:
            files = _exported(plugin, store, record)
        except UserError as error:
            if references:
                raise
            left_out.append(Travelled(record=record, left_out=error))
            continue
        for name, text in files.items():
            path = folder / name
            if path in planned:
                first = planned[path][0]
                raise UserError(
                    f"{first.stem} and {record.stem} would both be written to {path}",
                    fix="export them one by one, each into a folder of its own",
                )
            planned[path] = (record, text)
    if not planned:
        reasons = "; ".join(one.left_out.message for one in left_out[:3] if one.left_out is not None)
        raise UserError(f"no run in {store.places.main} can be exported{': ' if reasons else ''}{reasons}")
    return [*_written(planned), *left_out]


def _exported(plugin: Dialect, store: RunStore, record: Record) -> Mapping[str, str]:
    """The files that a run is in the foreign format, by their path."""

    def samples(evaluation: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        folder = store.evaluation_folder(record, Evaluation.model_validate(evaluation))
        return read_samples(folder) if folder is not None else ()

    payload, plain = store.folder_of(record), record.model_dump(mode="python")
    state = read_progress(payload).state if (payload / PROGRESS).is_file() else {}
    facts = {"curve": read_curve(payload), "state": state, "samples": samples}
    if plugin.export_files is not None:
        return plugin.export_files(plain, facts)
    assert plugin.export_result is not None and plugin.result_path is not None
    result = plugin.export_result(plain, facts)
    return {plugin.result_path(result): json.dumps(result, indent=2, ensure_ascii=True, allow_nan=False) + "\n"}


def _written(planned: Mapping[Path, tuple[Record, str]]) -> Iterator[Travelled]:
    """Write what is not there yet, once it is certain that nothing would be lost."""
    for path, (_, text) in planned.items():
        if path.exists() and path.read_bytes() != text.encode():
            raise UserError(f"{path} is there, with other content", fix="move it away, or export to another folder")
    for path, (record, text) in planned.items():
        new = not path.exists()
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text)
        yield Travelled(record=record, path=path, new=new)


# ---------------------------------------------------------------------------------------------------------- import


def import_files(store: RunStore, files: Sequence[str], *, dialect: str) -> list[Travelled]:
    """Read results of a foreign format into the results folder, as runs with scores.

    They have outcomes per item, to be paired by and graded again, only where the format holds the items' answers.

    A file that was imported before, or that is an export of a run which is here, is not taken twice.

    Raises:
        UserError: A file that is no result of that format; then none is imported.
    """
    plugin = _speaking(dialect, ("import_result",), "no results can be read from it")
    found = {record.key: (record, items) for record, items in (_imported(plugin, Path(file)) for file in files)}
    known = {record.key: record for record in store.records()}
    travelled = []
    for key, (record, items) in found.items():
        original = known.get(key) or known.get(record.provenance.get("exported_key") or "")
        path = store.path_of(original or record)
        if original is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            record = _with_items(store, record, items)
            write_atomic(path, to_json(record))
        travelled.append(Travelled(record=original or record, path=path, new=original is None))
    return travelled


def _imported(plugin: Dialect, path: Path) -> tuple[Record, Mapping[str, ForeignItems]]:
    assert plugin.import_result is not None
    if not path.is_file():
        raise UserError(f"no file at {path}", fix="give the paths of result files")
    result = read_json(path) if plugin.parse is None else plugin.parse(read_text(path), str(path))
    plain = dict(plugin.import_result(result, str(path)))
    plain["method"] = method_name(plain["spec"]["adapter"])
    if plain["created_at"] is None:
        written = datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)
        plain["created_at"] = written.isoformat(timespec="seconds")
    record = from_json(json.dumps(plain), where=str(path))
    safe_name(record.stem)
    return record, plugin.import_items(result, str(path)) if plugin.import_items is not None else {}


def _with_items(store: RunStore, record: Record, found: Mapping[str, ForeignItems]) -> Record:
    """The record, once the outcomes of its evaluations lie in its folder."""
    if not found:
        return record
    evaluations = [
        store_items(store, record, evaluation, **vars(found[evaluation.key])) if evaluation.key in found else evaluation
        for evaluation in record.evaluations
    ]
    return record.model_copy(update={"evaluations": tuple(evaluations)})


def store_items(
    store: RunStore,
    record: Record,
    evaluation: Evaluation,
    *,
    samples: Sequence[Mapping[str, Any]],
    items: Sequence[str],
    outcomes: Mapping[str, Any],
) -> Evaluation:
    """Write the answers of an imported evaluation, in place of older ones; the record is the caller's to write."""
    import numpy as np  # imported late, as everywhere in this package

    name = safe_name(f"{evaluation.task}-{evaluation.key[:12]}")
    return write_evaluation(
        store.folder_of(record) / EVALUATIONS / name,
        evaluation,
        shown=f"{EVALUATIONS}/{name}",
        samples=samples,
        items=items,
        clusters=(),
        outcomes={metric: np.asarray(values, dtype=np.float64) for metric, values in outcomes.items()},
    )


def replace(store: RunStore, record: Record) -> Path:
    """Write an imported run's record again, where it lies."""
    path = store.path_of(record)
    write_atomic(path, to_json(record))
    return path


def _speaking(dialect: str, abilities: Sequence[str], otherwise: str) -> Dialect:
    plugin: Dialect = find("dialects", dialect, where="--format")
    if not any(getattr(plugin, ability) for ability in abilities):
        raise UserError(f"--format {dialect}: {otherwise}", fix="use --format s0, or s3")
    return plugin
