"""`peftlab evaluate`: start the scoring or the grading of what is stored, draw its events, print its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import typer

from peftlab.cli import arguments, display, scores, tables
from peftlab.cli.running import set_up_logging
from peftlab.errors import UserError
from peftlab.events import Evaluated, Event
from peftlab.records.store import RunStore


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be scored of each run, as the flags of `peftlab evaluate` say it."""

    task: str | None = None
    benchmarks: tuple[str, ...] = ()
    checkpoint: str | None = None


def evaluate(words: Sequence[str], asked: Asked, *, folder: str, as_json: bool, verbose: bool) -> None:
    """Score finished runs, saved adapters or bare models, then print the evaluations and a table a benchmark."""
    set_up_logging(verbose)
    references, settings = arguments.split(words)
    _require_some(references)
    checkpoint = asked.checkpoint
    if checkpoint is not None and checkpoint not in ("last", "best") and not checkpoint.isdigit():
        raise UserError(
            f"--checkpoint {checkpoint}: no such checkpoint", fix="give last, best, or the number of a step"
        )
    overrides = arguments.parse(settings)
    from peftlab.job import evaluating

    events = evaluating.evaluate(
        references,
        RunStore(folder),
        task=asked.task,
        benchmark=asked.benchmarks,
        checkpoint=checkpoint,
        overrides=overrides,
    )
    _drawn(events, asked, as_json=as_json, verbose=verbose)


def regrade(
    words: Sequence[str],
    asked: Asked,
    *,
    grader: str | None,
    regrades: bool,
    folder: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Grade stored predictions again, then print the evaluations."""
    set_up_logging(verbose)
    references, settings = arguments.split(words)
    _require_some(references)
    if not regrades:
        raise UserError("--grader grades what is stored", fix="add --regrade")
    if settings or asked.checkpoint is not None or asked.benchmarks:
        raise UserError(
            "--regrade predicts nothing, so it takes no settings, no --checkpoint and no --benchmark",
            fix="leave them out; --task T grades the predictions on one task alone",
        )
    from peftlab.job import regrading

    events = regrading.regrade(references, RunStore(folder), task=asked.task, grader=grader)
    _drawn(events, asked, as_json=as_json, verbose=verbose)


def _require_some(references: Sequence[str]) -> None:
    if not references:
        raise UserError("no run is named", fix="give a record's path, a key prefix, an experiment folder or a model")


def _drawn(events: Iterable[Event], asked: Asked, *, as_json: bool, verbose: bool) -> None:
    drawn = display.draw(events, verbose=verbose)
    found = [event for event in drawn if isinstance(event, Evaluated)]
    if as_json:
        tables.write_json(
            [{"run": event.of, "evaluation": event.evaluation.model_dump(mode="python")} for event in found]
        )
        return
    if not found:
        typer.echo("nothing new was scored; `peftlab results show RUN` prints what is stored", err=True)
        return
    rows = [
        (event.of, scored.task, scored.part, str(scored.checkpoint), name, scores.text(metric), metric.n)
        for event, scored in ((event, event.evaluation) for event in found)
        for name, metric in scored.metrics.items()
    ]
    tables.write(("run", "task", "part", "step", "metric", "score", "items"), rows)
    for name in asked.benchmarks:
        from peftlab.verdicts import suites

        sheet = suites.sheet(name, [(str(event.of), event.evaluation) for event in found])
        typer.echo("")
        tables.write(sheet.columns, sheet.rows, title=sheet.title)
        for note in sheet.notes:
            typer.echo(f"note: {note}")
