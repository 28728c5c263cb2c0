"""Reports a run to the trackers that `track.report_to` names: which figures, under which names, and how it ended.

Reads the events that pass by and changes nothing. A tracker that raises is said once and left out from there on: no
report is worth a run. How a tracker writes is its plug-in's business (`trackers/`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.events import Evaluated, Event, Saved, Started, Step
from peftlab.protocols import Tracked, TrackerSession, find
from peftlab.records.payload import EVALUATIONS
from peftlab.records.record import Evaluation, Record, loads
from peftlab.records.slot import Slot, status_of
from peftlab.verdicts import columns

TRACKERS = "trackers"
"""Folder in a run's own folder; every tracker writes below it, in one of its own name."""

_MAX_ERROR_CHARACTERS = 2000
_logger = logging.getLogger(__name__)

Work = Generator[Event, None, Record]


def check(spec: RunSpec) -> None:
    """Look at every tracker before time is spent.

    Raises:
        UserError: A tracker that does not exist, or whose extra is not installed.
    """
    for name in spec.track.report_to:
        tracker = find("trackers", name, where="track.report_to")
        try:
            tracker.check()
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - a library that is broken cannot stop a run
            problem = f"{type(error).__name__}: {error}"
            _logger.warning("tracker '%s' is broken here and may tell nothing; the run goes on: %s", name, problem)


def tracked(work: Work, spec: RunSpec, slot: Slot, bases: Path) -> Work:
    """The same events, each told to the trackers on its way; returns what the work returns.

    Everything is closed when this ends, before the run's folder moves to its final place. Nothing is written before
    the run itself writes.

    Args:
        work: The events; they return the record.
        spec: The run.
        slot: Where it writes.
        bases: The results folder, which evaluations of bare models lie in.
    """
    if not spec.track.report_to:
        return (yield from work)
    reports = _Reports(spec, slot, bases)
    try:
        with closing(work):
            record = yield from _told(work, reports.tell)
        reports.tell_start(record)
    except BaseException as error:
        reports.close(status_of(error), f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARACTERS])
        raise
    reports.close("finished", None)
    return record


def _told(work: Work, tell: Callable[[Event], None]) -> Work:
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            record: Record = end.value
            return record
        tell(event)
        yield event


class _Reports:
    """The open reports of one run. They open when training starts, or at once when it is done already."""

    def __init__(self, spec: RunSpec, slot: Slot, bases: Path) -> None:
        self._spec = spec
        self._slot = slot
        self._bases = bases
        self._sessions: dict[str, TrackerSession] = {}
        self._waiting: list[Evaluated] | None = []
        self._told: set[str] = set()
        if slot.get("trained") is not None:
            self._open(step=None)

    def tell(self, event: Event) -> None:
        """Pass on what is worth a report."""
        if isinstance(event, Started):
            self._open(step=event.step)
        elif isinstance(event, Evaluated) and self._waiting is not None:
            self._waiting.append(event)
        elif isinstance(event, Evaluated):
            self._evaluated(event.evaluation)
        elif isinstance(event, Step):
            self._write(lambda session: session.numbers(event.step, figures(event)))
        elif isinstance(event, Saved):
            self._write(lambda session: session.texts(event.step, "checkpoint", [event.folder]))

    def tell_start(self, record: Record) -> None:
        """The starting model's scores, where another run or an earlier part made them: they pass by as no event."""
        for evaluation in record.evaluations:
            if evaluation.checkpoint == "base" and evaluation.key not in self._told:
                self._evaluated(evaluation)

    def close(self, status: str, error: str | None) -> None:
        """Say how it ended, and leave no file open."""
        for name, session in list(self._sessions.items()):
            self._guarded(name, "close", partial(session.close, status, error))
        self._sessions = {}

    def _open(self, *, step: int | None) -> None:
        for name in dict.fromkeys(self._spec.track.report_to):
            self._guarded(name, "open", partial(self._open_one, name, step))
        waiting, self._waiting = self._waiting or [], None
        for event in waiting:
            self._evaluated(event.evaluation)

    def _open_one(self, name: str, step: int | None) -> None:
        run = described(self._spec, self._slot, name, step=step)
        self._sessions[name] = find("trackers", name, where="track.report_to").open(run)

    def _evaluated(self, evaluation: Evaluation) -> None:
        self._told.add(evaluation.key)
        step = 0 if evaluation.checkpoint == "base" else evaluation.checkpoint
        self._write(lambda session: session.numbers(step, scores(evaluation)))
        if self._spec.track.log_samples and evaluation.folder is not None:
            inside = evaluation.folder.startswith(f"{EVALUATIONS}/")
            file = (self._slot.folder if inside else self._bases) / evaluation.folder / "samples.jsonl"
            samples = list(_first_samples(file, self._spec.track.log_samples))
            name = f"samples/{_name(evaluation)}"
            if samples:
                self._write(lambda session: session.texts(step, name, samples))

    def _write(self, write: Callable[[TrackerSession], None]) -> None:
        for name, session in list(self._sessions.items()):
            self._guarded(name, "write", partial(write, session))

    def _guarded(self, name: str, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - no report is worth a run
            _logger.warning(
                "tracker '%s' failed to %s and is left out from here on; the run goes on: %s: %s",
                *(name, what, type(error).__name__, error),
            )
            session = self._sessions.pop(name, None)
            if session is not None and what != "close":
                try:
                    session.close("failed", f"the tracker failed to {what}")
                except Exception as again:  # noqa: BLE001 - said once is enough
                    _logger.debug("tracker '%s' failed to close too: %s", name, again)


# ------------------------------------------------------------------------------------------------- what is reported


def described(spec: RunSpec, slot: Slot, tracker: str, *, step: int | None) -> Tracked:
    """What a tracker is told of a run."""
    begun = re.sub(r"[^0-9]", "", slot.created_at)[:14]
    model = spec.model.id.rstrip("/").rpartition("/")[2]
    results = [f"{spec.task.name}/test/{role}/{name}" for role in ("last", "best") for name in spec.task.metrics]
    return Tracked(
        id=f"{spec.train_key}-{begun}",
        name=spec.stem,
        project=spec.track.project,
        folder=slot.folder / TRACKERS / re.sub(r"[^A-Za-z0-9._-]", "-", tracker),
        step=step,
        tags={"method": spec.method, "task": spec.task.name, "model": model, "seed": f"seed {spec.seed}"},
        config={
            **columns.settings(spec.model_dump(mode="json")),
            "key": spec.train_key,
            "arm": spec.arm,
            "method": spec.method,
        },
        results=tuple(results),
    )


def figures(step: Step) -> dict[str, float]:
    """What is reported of one optimizer step."""
    found: dict[str, float | None] = {
        "train/loss": step.loss,
        "train/method_loss": step.method_loss,
        "train/learning_rate": step.learning_rate,
        "train/grad_norm": step.grad_norm,
        "train/tokens_per_second": step.tokens / step.seconds if step.seconds > 0 else None,
        "train/memory_bytes": step.memory_bytes,
        "train/epoch": step.epoch,
    }
    return {name: value for name, value in found.items() if value is not None}


def scores(evaluation: Evaluation) -> dict[str, float]:
    """What is reported of one evaluation: every metric under `task/part/role/metric`."""
    return {f"{_name(evaluation)}/{name}": metric.mean for name, metric in evaluation.metrics.items()}


def _name(evaluation: Evaluation) -> str:
    return f"{evaluation.task}/{evaluation.part}/{evaluation.role}"


def _first_samples(file: Path, count: int) -> Iterator[str]:
    """The first stored samples of an evaluation as text: the row, what the model said, how it was graded."""
    if not file.is_file():
        return
    with open(file, encoding="ascii") as lines:
        for _, line in zip(range(count), lines, strict=False):
            sample = loads(line)
            shown = {**sample["columns"], **sample["prediction"], "reference": sample["reference"]}
            shown.update({f"graded {mode}": grade["score"] for mode, grade in sample["grades"].items()})
            yield "\n".join(f"{name}: {value}" for name, value in shown.items())
