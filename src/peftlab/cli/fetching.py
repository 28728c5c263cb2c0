"""`peftlab fetch`: fill a mirror folder, and print what is in it now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from peftlab.cli import tables
from peftlab.rows.fetching import Fetched, fetch


def run(names: Sequence[str], *, to: str, force: bool) -> None:
    """Fetch what tasks and texts need, with a line for each split on the way and a table at the end."""
    done: list[Fetched] = []
    try:
        for one in fetch(names, Path(to), force=force, tell=lambda text: typer.echo(text, err=True)):
            done.append(one)
    finally:
        if done:
            columns = ("data set", "split", "state", "rows", "revision")
            tables.write(columns, [_row(one) for one in done])
    if any(one.state != "nothing to fetch" for one in done):
        typer.echo(f"use it with PEFTLAB_MIRROR={to}", err=True)


def _row(one: Fetched) -> tuple[tables.Cell, ...]:
    state = f"{one.state}, first rows only" if one.partial else one.state
    return one.name, one.split, state, one.rows, one.revision
