"""`peftlab results export` and `import`: say which file became which run. Translates nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from peftlab.records import exchange
from peftlab.records.store import RunStore


def export(references: Sequence[str], *, dialect: str, to: str, folder: str) -> None:
    """Write runs in a foreign format, and name those that were left out."""
    for one in exchange.export(RunStore(folder), references, dialect=dialect, folder=Path(to)):
        if one.left_out is not None:
            typer.echo(f"left out: {one.left_out.message}", err=True)
        else:
            typer.echo(f"{one.path}" if one.new else f"{one.path} (was there)")


def import_files(files: Sequence[str], *, dialect: str, folder: str) -> None:
    """Read foreign results in as runs."""
    for one in exchange.import_files(RunStore(folder), files, dialect=dialect):
        typer.echo(f"{one.record.experiment} ({one.record.key[:12]}): {one.path}" + ("" if one.new else " (was there)"))
