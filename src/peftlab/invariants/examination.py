"""Asks every invariant of one experiment, and says what came out; an invariant that cannot be asked says why.

Draws nothing and stores nothing: `peftlab doctor` and the measured table of methods do.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.invariants import abilities, afterwards, batches, learning, starting
from peftlab.invariants.findings import Finding, reason_of, said
from peftlab.invariants.trial import CALIBRATION_ROWS, ROWS, Trial, choose, examined
from peftlab.modelling import beginning, models
from peftlab.modelling.models import Base
from peftlab.rows import data

INVARIANTS: Mapping[str, Callable[[Trial], Finding]] = {
    "gradients": learning.gradients,
    "loss": learning.falls,
    "own loss": abilities.own_loss,
    "frozen": learning.frozen,
    "start": starting.output,
    "differs": learning.differs,
    "reload": afterwards.reload,
    "plain peft": afterwards.plain_peft,
    "merge": afterwards.merge,
    "disable": afterwards.disable,
    "neighbours": batches.neighbours,
    "resume": learning.resume,
    "seed": starting.seed,
}
LAST: Mapping[str, Callable[[Trial], Finding]] = {"second": afterwards.second}
ABILITIES: Mapping[str, Callable[[Trial], Finding]] = {
    "gradient checkpointing": abilities.checkpointing,
    "generates": abilities.generation,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One finding, and the seconds that it took to find."""

    finding: Finding
    seconds: float


def trial_of(spec: RunSpec, folder: Path, *, rows: data.Rows | None = None, base: Base | None = None) -> Trial:
    """A trial of an experiment on its own model and the shortest of its own training rows.

    Args:
        spec: The experiment as declared.
        folder: Where to write; whoever gave it removes it.
        rows: Its rows, where they were read already.
        base: Its base model, where it was loaded already.

    Raises:
        UserError: The adapter's start cannot work, rows or model cannot be had, or there are too few rows.
    """
    beginning.check(spec)
    spec = examined(spec)
    rows = rows or data.load(spec)
    base = base or models.load(
        spec.model, models.kind_of(spec), labels=spec.task.labels, seed=spec.seed, quant=spec.quant
    )
    chosen = tuple(choose(rows.train, base.tokenizer, spec))
    others = tuple(row for row in rows.train[: ROWS + CALIBRATION_ROWS] if row not in chosen)[:CALIBRATION_ROWS]
    if others:  # a task of few rows has fewer to spare
        wanted = spec.calibration.model_copy(update={"rows": len(others)})
        spec = spec.model_copy(update={"calibration": wanted})
    few = dataclasses.replace(rows, train=chosen, valid=others, test=(), shots=())  # a start reads other rows
    return Trial(spec=spec, rows=few, folder=folder, pristine=base)


EVERYTHING = {**INVARIANTS, **LAST}
"""What `peftlab doctor` asks; the measured table asks for the abilities too."""


def examine(trial: Trial, asked: Mapping[str, Callable[[Trial], Finding]] = EVERYTHING) -> Iterator[Answer]:
    """Ask the invariants one after the other. When training itself fails there is one answer: that it did.

    Raises:
        UserError: The experiment cannot be built at all, which is no finding but a mistake in its config.
    """
    _ = trial.first
    started = time.perf_counter()
    try:
        _ = trial.course
    except (*afterwards.REFUSALS, ArithmeticError) as error:
        text = error.message if isinstance(error, UserError) else reason_of(error)
        fix = (error.fix if isinstance(error, UserError) else None) or "see docs/troubleshooting.md"
        finding = said("training", "broken", f"training fails: {text}", fix=fix)
        yield Answer(finding=finding, seconds=time.perf_counter() - started)
        return
    for name, ask in asked.items():
        try:
            finding = ask(trial)
        except afterwards.REFUSALS as error:
            text = error.message if isinstance(error, UserError) else reason_of(error)
            finding = said(name, "broken", f"could not be asked: {text}", fix="report it with the config")
        yield Answer(finding=finding, seconds=time.perf_counter() - started)
        started = time.perf_counter()


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for an examination, removed when it is left."""
    return tempfile.TemporaryDirectory(prefix="peftlab-doctor-", ignore_cleanup_errors=True)
