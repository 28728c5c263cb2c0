"""`peftlab results`: list records, print one, and say in what two differ. Reads only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer

from peftlab.cli import environment, scores, tables, units
from peftlab.cli.running import summary
from peftlab.errors import UserError
from peftlab.records.record import Record
from peftlab.records.store import RunStore
from peftlab.verdicts.columns import BY_NAME, flat

_COLUMNS = ("experiment", "task", "seed", "status", "category", "metric", "score", "start", "training", "key")
_KEY_CHARACTERS = 12


def list_all(folder: str, *, task: str | None, where: str | None = None, stale: bool, as_json: bool) -> None:
    """Print every record of a results folder, one line each."""
    store = RunStore(folder)
    records = [record for record in store.records() if task is None or task in _tasks(record)]
    for path, message in store.problems:
        typer.echo(f"not readable: {path}: {message}", err=True)
    if where is not None:
        from peftlab.verdicts.where import select

        records = select(records, where, task=task)
    changes = {record.key: version_changes(record) for record in records} if stale else {}
    if stale:
        records = [record for record in records if changes[record.key]]
    if as_json:
        tables.write_json([record.model_dump(mode="python") for record in records])
        return
    if not records:
        passing = " that pass the filter" if where is not None else ""
        typer.echo(f"no {'stale ' if stale else ''}runs{passing} in {folder}", err=True)
        return
    kept = {record.key: BY_NAME["retention"].pick(record) for record in records}
    measured = any(value is not None for value in kept.values())  # a column of nothing tells nothing
    columns = (*_COLUMNS, *(["retention"] * measured), *(["made with"] * stale))
    rows = [
        (
            *_row(record, task),
            *([units.number(kept[record.key])] * measured),
            *([", ".join(changes[record.key])] if stale else []),
        )
        for record in records
    ]
    tables.write(columns, rows)


def _tasks(record: Record) -> set[str]:
    return {record.task, *(evaluation.task for evaluation in record.evaluations)}


def _row(record: Record, task: str | None) -> tuple[tables.Cell, ...]:
    kept, start = scores.of_record(record, task=task), scores.of_record(record, task=task, role="base")
    primary = scores.primary(kept) if kept else None
    before = start.metrics.get(primary[0]) if start and primary else None
    return (
        record.experiment,
        task or record.task,
        record.seed,
        record.status,
        record.category,
        primary[0] if primary else None,
        scores.text(primary[1] if primary else None),
        scores.text(before),
        units.duration(record.cost.seconds.get("train")),
        record.key[:_KEY_CHARACTERS],
    )


def version_changes(record: Record) -> list[str]:
    """The packages whose installed version is not the one that the run was made with: `peft 0.20.0 (now 0.21.2)`."""
    made_with: Mapping[str, str | None] = record.provenance.get("versions") or {}
    return [
        f"{package} {before} (now {environment.version(package) or 'not installed'})"
        for package, before in made_with.items()
        if before is not None and environment.version(package) != before
    ]


# ------------------------------------------------------------------------------------------------------- one or two


def one(store: RunStore, reference: str) -> Record:
    """The one record that a reference names.

    Raises:
        UserError: It names none or several.
    """
    found = store.find(reference)
    if len(found) != 1:
        lines = ", ".join(f"{record.key[:_KEY_CHARACTERS]} ({record.task}, seed {record.seed})" for record in found)
        raise UserError(
            f"'{reference}' names {len(found)} runs" + (f": {lines}" if found else ""),
            fix="give the key of one of them (peftlab results lists all)",
        )
    return found[0]


def show(reference: str, *, folder: str, as_json: bool) -> None:
    """Print one record: scores, cost, settings that are not at their default, and what it was made with."""
    store = RunStore(folder)
    record = one(store, reference)
    if as_json:
        tables.write_json(record.model_dump(mode="python"))
        return
    lines = summary(record, store)
    lines["key"] = record.key
    lines["arm"] = record.arm
    if record.aliases:
        lines["also run as"] = ", ".join(record.aliases)
    lines["begun"] = record.created_at
    if record.error:
        lines["error"] = record.error
    lines["settings"] = _listed(flat(record.identity))
    versions = record.provenance.get("versions") or {}
    lines["made with"] = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    tables.write_pairs(lines)


def diff(first: str, second: str, *, folder: str, as_json: bool) -> None:
    """Print the settings in which two runs differ."""
    store = RunStore(folder)
    left, right = one(store, first), one(store, second)
    different = scores.differences(left.spec, right.spec)
    if as_json:
        tables.write_json({key: list(pair) for key, pair in different.items()})
        return
    if not different:
        typer.echo("the two runs have the same settings", err=True)
        return
    names = (left.key[:_KEY_CHARACTERS], right.key[:_KEY_CHARACTERS])
    tables.write(("setting", *names), [(key, _text(pair[0]), _text(pair[1])) for key, pair in different.items()])


def _listed(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{name} = {_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
