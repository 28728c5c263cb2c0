"""Tables and JSON on stdout: drawn by rich on a terminal, plain aligned text elsewhere. Nothing is ever cut off."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

Cell = str | int | None

_NARROW, _WRAPPED = 16, 18
"""Columns up to so many characters are never wrapped; longer ones get at least so many where a table is too wide."""


def write(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, title: str = "", stream: TextIO | None = None
) -> None:
    """Print a table. Columns whose cells are all numbers should be given as text already; None is shown as `-`."""
    out = stream or sys.stdout
    texts = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    if out.isatty():
        _draw(columns, texts, title, out)
        return
    if title:
        print(title, file=out)
    for line in _aligned([list(columns), *texts]):
        print(line, file=out)


def write_pairs(pairs: Mapping[str, Cell], *, stream: TextIO | None = None) -> None:
    """Print `name  value` lines; values of several lines keep their indent."""
    out = stream or sys.stdout
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        first, *rest = ("-" if value is None else str(value)).splitlines() or [""]
        print(f"{name:<{width}}  {first}".rstrip(), file=out)
        for line in rest:
            print(" " * (width + 2) + line, file=out)


def write_json(value: object) -> None:
    """Print a value as JSON, NaN and infinity kept, and nothing else."""
    from peftlab.records.record import dumps

    print(dumps(value, indent=1))


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, out: TextIO) -> None:
    """A table where it fits, else one with wrapped long columns, else a block of `column  value` lines per row."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=out, highlight=False)
    natural = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    narrow = [width <= _NARROW for width in natural]
    fits = _needed(natural) <= console.width
    wrapped = [width if short else min(width, _WRAPPED) for width, short in zip(natural, narrow, strict=True)]
    if not fits and _needed(wrapped) > console.width:
        _blocks(columns, rows, title, out)
        return
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, short in zip(columns, narrow, strict=True):
        table.add_column(name, overflow="fold", no_wrap=fits or short)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _needed(widths: Sequence[int]) -> int:
    return sum(widths) + 3 * len(widths)


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, out: TextIO) -> None:
    if title:
        print(title, file=out)
    for row in rows:
        print(file=out)
        write_pairs(dict(zip(columns, row, strict=True)), stream=out)
