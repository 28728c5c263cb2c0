"""`peftlab show`: rows as the model sees them, with the part that the loss is taken on in [[ ]].

Tokenises with the experiment's own tokenizer; a task alone is shown as text. Trains and scores nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from peftlab.cli import arguments, tables, units
from peftlab.errors import UserError
from peftlab.loading import bare
from peftlab.spec import RunSpec

if TYPE_CHECKING:
    from peftlab.tokenise import TokenRow

NUM_ROWS = 3
_NO_MODEL = "none"


def show(target: str, settings: Sequence[str], *, dialect: str | None = None) -> None:
    """Show the first rows of an experiment or a task."""
    if Path(target).is_dir():
        _show_experiment(arguments.load_spec(target, arguments.parse(settings), dialect))
    elif settings:
        raise UserError(f"{target} is a task; settings go with an experiment", fix="name an experiment folder")
    else:
        _show_task(bare(_NO_MODEL, task=target))


def _show_task(spec: RunSpec) -> None:
    from peftlab import data

    rows = data.load(spec)
    for number, example in enumerate((rows.train or rows.valid or rows.test)[:NUM_ROWS], start=1):
        _heading(number, example.item)
        text = " || ".join(example.pair) or example.prompt
        typer.echo(f"{text}[[{example.target or example.reference}]]")


def _show_experiment(spec: RunSpec) -> None:
    from peftlab import data, models, tokenise

    rows = data.load(spec)
    if not rows.train:
        raise UserError(f"task '{spec.task.name}' has no training rows", fix="name 'train' in the task file")
    tokenizer = models.load_tokenizer(spec.model)
    token_rows, facts = tokenise.tokenise(
        rows.train,
        tokenizer,
        kind=models.kind_of(spec),
        max_length=spec.data.max_length,
        loss_mask=spec.data.loss_mask,
    )
    for number, (example, row) in enumerate(zip(rows.train[:NUM_ROWS], token_rows, strict=False), start=1):
        _heading(number, example.item)
        typer.echo(marked(tokenizer, row))
    typer.echo("")
    lengths = sorted(len(row.ids) for row in token_rows)
    quantiles = {"median length": _quantile(lengths, 0.5), "95 % are at most": _quantile(lengths, 0.95)}
    counts = {name.replace("_", " "): _number(value) for name, value in facts.items()}
    tables.write_pairs({**counts, **quantiles, "limit (data.max_length)": spec.data.max_length})


def _number(value: Any) -> str:
    return units.number(value) if isinstance(value, float) else str(value)


def marked(tokenizer: Any, row: TokenRow) -> str:
    """A row's text with what the loss is taken on in [[ ]], and where it was cut off."""
    masked, trained = row.ids[: row.labels_from], row.ids[row.labels_from :]
    end = f"[[{tokenizer.decode(trained)}]]" if trained else ""
    label = f"[[label {row.label}]]" if row.label is not None else ""
    return f"{tokenizer.decode(masked)}{end}{label}{' (cut off here)' if row.truncated else ''}"


def _quantile(ordered: Sequence[int], share: float) -> int:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _heading(number: int, item: str) -> None:
    typer.echo(f"{'' if number == 1 else chr(10)}--- row {number} ({item[:12]})")
