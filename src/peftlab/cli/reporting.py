"""`peftlab report`: reads results, and writes the page that `report` makes of them. Computes nothing of its own."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import typer

from peftlab.cli import units
from peftlab.cli.comparing import compared
from peftlab.errors import UserError
from peftlab.records.store import RunStore
from peftlab.report import contents, page


def report(folder: str, *, output: str, task: str | None, metric: str | None, where: str | None) -> None:
    """Write the page, and say where it is.

    Raises:
        UserError: There is nothing to show, or nowhere to write it.
    """
    store = RunStore(folder)
    records = store.records()
    problems = list(store.problems)
    for path, message in problems:
        typer.echo(f"not readable: {path}: {message}", err=True)
    if not records:
        raise UserError(f"no runs in {folder} and its siblings", fix="give the folder that peftlab run wrote to")
    records, comparison = compared(records, store, folder=folder, task=task, metric=metric, where=where)
    if not records:
        raise UserError(f"no run in {folder} passes the filter {where}", fix="look at what there is: peftlab results")
    found = contents.page(
        comparison, records, folder=folder, version=version("peftlab"), where=where, problems=problems
    )
    text = page.render(found)
    page.write(Path(output), text)
    typer.echo(output)
    arms = sum(row.kind == "arm" for sheet in found.sheets for row in sheet.rows)
    counts = f"tasks: {len(found.sheets)}, arms: {arms}, runs: {len(found.runs)}"
    typer.echo(f"{counts}; {units.size(len(text.encode()))}, opens in any browser", err=True)
