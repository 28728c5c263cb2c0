"""`peftlab evaluate`: start the scoring or the grading of what is stored, draw its events, print its tables."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import typer

from peftlab.cli import arguments, display, scores, tables, units
from peftlab.cli.options import UNSAFE_SETTING
from peftlab.cli.running import set_up_logging
from peftlab.errors import UserError
from peftlab.events import Evaluated, Event
from peftlab.records.record import Evaluation
from peftlab.records.store import RunStore


@dataclass(frozen=True, kw_only=True)
class Programs:
    """What becomes of answers that are programs: a file of them, another harness, and whether they run unisolated."""

    path: str | None = None
    harness: str | None = None
    unsafe: bool = False

    @property
    def wanted(self) -> bool:
        """Whether they are written at all."""
        return self.path is not None or self.harness is not None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be scored of each run, as the flags of `peftlab evaluate` say it."""

    task: str | None = None
    benchmarks: tuple[str, ...] = ()
    checkpoint: str | None = None
    programs: Programs = Programs()


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
    overrides = arguments.parse([*settings, *([UNSAFE_SETTING] if asked.programs.unsafe else [])])
    from peftlab.job import evaluating, written

    if asked.programs.wanted:
        written.refuse(overrides, asked.programs.harness, unsafe=asked.programs.unsafe)
    events = evaluating.evaluate(
        references,
        RunStore(folder),
        task=asked.task,
        benchmark=asked.benchmarks,
        checkpoint=checkpoint,
        overrides=overrides,
        tell_stored=asked.programs.wanted,
    )
    found = _drawn(events, asked, as_json=as_json, verbose=verbose)
    if asked.programs.wanted:
        _write_programs(found, asked.programs, RunStore(folder), stream=sys.stderr if as_json else sys.stdout)


def _write_programs(found: Sequence[Evaluated], wanted: Programs, store: RunStore, *, stream: TextIO) -> None:
    from peftlab.job import written

    with tempfile.TemporaryDirectory() as scratch:
        saved = written.save(found, store, Path(wanted.path or f"{scratch}/generations.json"))
        if wanted.path is not None:
            for one in saved:
                typer.echo(f"programs of {one.of}, step {one.evaluation.checkpoint}: {one.path}", err=True)
        if wanted.harness is None:
            return
        rows = []
        for one, metrics in written.elsewhere(saved, wanted.harness):
            for name, value in metrics.items():
                own = one.evaluation.metrics.get(name)
                here = None if own is None else scores.text(own)
                step, there = str(one.evaluation.checkpoint), units.number(value)
                rows.append((one.of, one.evaluation.task, step, name, here, there))
        title = f"by {wanted.harness}"
        tables.write(("run", "task", "step", "metric", "here", "harness"), rows, title=title, stream=stream)


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
    if settings or asked.checkpoint is not None or asked.benchmarks or asked.programs.wanted:
        raise UserError(
            "--regrade predicts nothing: it takes no settings, no --checkpoint, no --benchmark, and writes no programs",
            fix="leave them out; --task T grades the predictions on one task alone",
        )
    from peftlab.job import regrading

    events = regrading.regrade(
        references, RunStore(folder), task=asked.task, grader=grader, allow_unsafe_code=asked.programs.unsafe
    )
    _drawn(events, asked, as_json=as_json, verbose=verbose)


def _require_some(references: Sequence[str]) -> None:
    if not references:
        raise UserError("no run is named", fix="give a record's path, a key prefix, an experiment folder or a model")


def _notes(found: Sequence[Evaluation]) -> list[str]:
    """Of each task and part, once: what needs no model, and whether the rows are all that there are."""
    from peftlab.verdicts import suites

    notes: dict[str, None] = {}
    for one in found:
        told = suites.without_model(one)
        if told:
            notes[f"{one.task}, {one.part}: without a model {told}"] = None
        if one.partial:
            notes[f"{one.task}, {one.part}: a part of the data"] = None
    return [*notes]


def _drawn(events: Iterable[Event], asked: Asked, *, as_json: bool, verbose: bool) -> list[Evaluated]:
    drawn = display.draw(events, verbose=verbose)
    found = [event for event in drawn if isinstance(event, Evaluated)]
    if as_json:
        tables.write_json(
            [{"run": event.of, "evaluation": event.evaluation.model_dump(mode="python")} for event in found]
        )
        return found
    if not found:
        typer.echo("nothing new was scored; `peftlab results show RUN` prints what is stored", err=True)
        return found
    rows = [
        (event.of, scored.task, scored.part, str(scored.checkpoint), name, scores.text(metric), metric.n)
        for event, scored in ((event, event.evaluation) for event in found)
        for name, metric in scored.metrics.items()
    ]
    tables.write(("run", "task", "part", "step", "metric", "score", "items"), rows)
    for note in _notes([event.evaluation for event in found]):
        typer.echo(f"note: {note}")
    from peftlab.verdicts import failing

    for event in found:
        failed = failing.said([event.evaluation])
        if failed is not None:
            typer.echo(f"note: {event.of}, {event.evaluation.task}, step {event.evaluation.checkpoint}: {failed}")
    for name in asked.benchmarks:
        from peftlab.verdicts import suites

        sheet = suites.sheet(name, [(str(event.of), event.evaluation) for event in found])
        typer.echo("")
        tables.write(sheet.columns, sheet.rows, title=sheet.title)
        for note in sheet.notes:
            typer.echo(f"note: {note}")
    return found
