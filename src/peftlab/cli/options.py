"""The options that several verbs share, declared once."""

from __future__ import annotations

import os
from typing import Annotated

import typer


def _set_plugins(packages: str | None) -> None:
    if packages:
        from peftlab.protocols import PLUGINS_VARIABLE

        os.environ[PLUGINS_VARIABLE] = packages


def print_version(wanted: bool) -> None:
    """Print the version and end, when `--version` is given."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"peftlab {version('peftlab')}")
        raise typer.Exit()


Plugins = Annotated[
    str | None,
    typer.Option(
        "--plugins",
        metavar="PKG[,PKG]",
        callback=_set_plugins,
        help="Packages of your own that a config may name code from. The variable PEFTLAB_PLUGINS does the same.",
    ),
]
Dialect = Annotated[
    str | None,
    typer.Option(
        "--dialect", metavar="NAME", help="Foreign format that the experiment is written in (s0, s1); else found out."
    ),
]
UNSAFE_SETTING = "execution.allow_unsafe_code=true"
Unsafe = Annotated[
    bool,
    typer.Option("--allow-unsafe-code", help="Run what models write even where nothing isolates it (peftlab doctor)."),
]
Results = Annotated[str, typer.Option("--results", metavar="DIR", help="Folder of results.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr: checkpoints, notes, log messages.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, task=NAME, seed=N.")]
Where = Annotated[
    str | None,
    typer.Option("--where", metavar="FILTER", help="Only runs that pass: 'method == \"ia3\" and exact_match > 0.3'."),
]
ResultsOrParents = Annotated[str | None, typer.Option("--results", metavar="DIR", help="Folder of results.")]
Format = Annotated[str, typer.Option("--format", metavar="NAME", help="Whose result files: a dialect's name.")]
