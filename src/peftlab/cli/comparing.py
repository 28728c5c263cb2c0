"""`peftlab compare`: prints the tables and claims of `verdicts.compare`. Computes nothing of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from peftlab.cli import tables
from peftlab.errors import UserError
from peftlab.records.record import Record
from peftlab.records.store import RunStore
from peftlab.verdicts import table
from peftlab.verdicts.arms import BareModel
from peftlab.verdicts.compare import Comparison
from peftlab.verdicts.compare import compare as compare_records
from peftlab.verdicts.where import select


def compare(
    references: Sequence[str],
    *,
    folder: str,
    task: str | None,
    metric: str | None,
    where: str | None = None,
    as_json: bool,
) -> None:
    """Compare the runs named, or all, and print one table per task with its claims.

    Raises:
        UserError: A run, a task or a metric that is not there.
    """
    store = RunStore(folder)
    records = [record for reference in references for record in store.find(reference)] or store.records()
    _, comparison = compared(records, store, folder=folder, task=task, metric=metric, where=where)
    if as_json:
        tables.write_json(plain(comparison))
        return
    for number, sheet in enumerate(table.sheets(comparison)):
        if number:
            typer.echo("")
        tables.write(sheet.columns, sheet.rows, title=sheet.title)
        for note in sheet.notes:
            typer.echo(f"note: {note}")
    if not comparison.tables:
        passing = " that passes the filter" if where is not None else ""
        typer.echo(f"nothing to compare: no finished run{passing} in {folder} was scored", err=True)


def compared(
    records: Sequence[Record],
    store: RunStore,
    *,
    folder: str,
    task: str | None,
    metric: str | None,
    where: str | None,
) -> tuple[list[Record], Comparison]:
    """The records that were asked for, and their comparison.

    Raises:
        UserError: The task, the metric or a column of the filter is not there.
    """
    bases = [BareModel(evaluation=evaluation, folder=place) for evaluation, place in store.base_evaluations()]
    chosen = _on_task(records, task, folder)
    if where is not None:
        chosen = select(chosen, where, task=task)
    comparison = compare_records(chosen, store.evaluation_folder, metric=metric, bases=bases)
    shown = [one for one in comparison.tables if task is None or one.task == task]
    return chosen, dataclasses.replace(comparison, tables=tuple(shown))


def _on_task(records: Sequence[Record], task: str | None, folder: str) -> list[Record]:
    if task is None:
        return list(records)
    found = [one for one in records if task in {one.task, *(evaluation.task for evaluation in one.evaluations)}]
    if not found:
        known = sorted({record.task for record in records})
        raise UserError(
            f"no run in {folder} has to do with task '{task}'", fix=f"tasks there: {', '.join(known) or '-'}"
        )
    return found


def plain(value: Any) -> Any:
    """Dataclasses as plain data; fields that do not show in their `repr` (arrays) are left out."""
    if dataclasses.is_dataclass(value):
        shown = [one.name for one in dataclasses.fields(value) if one.repr]
        return {name: plain(getattr(value, name)) for name in shown}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
