"""What one run writes to while it is claimed: step log, small state, evaluations, its ending.

Decides nothing about which run may write and where old results lie; `store.py` does. Nothing here is computed: cost
and provenance come from the caller, except in the short record of a run that did not finish.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.records.atomic import discard, safe_name, write_atomic
from peftlab.records.payload import (
    CURVE,
    EVALUATIONS,
    PENDING,
    PROGRESS,
    WEIGHTS,
    Places,
    Progress,
    cut_torn_line,
    read_curve,
    read_evaluation,
    read_evaluations,
    record_beside,
    settle,
    unfinished,
    write_evaluation,
)
from peftlab.records.record import Category, Evaluation, Record, Status, dumps, to_json

if TYPE_CHECKING:
    import numpy as np

_MAX_ERROR_CHARACTERS = 2000
_OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator: can't allocate memory", "not enough memory", "std::bad_alloc")


class Slot:
    """One claimed run.

    Attributes:
        spec: The run.
        folder: Its payload. It moves when the run finishes.
        finished: The finished record, or None while there is work to do.
        previous: The record that the last part left, when the run goes on after one.
    """

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        progress: Progress,
        *,
        places: Places,
        finished: Record | None = None,
        previous: Record | None = None,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.finished = finished
        self.previous = previous
        self._places = places
        self._progress = progress
        self._before = progress
        self._fresh = not folder.exists()
        self._written = False
        self._curve: IO[str] | None = None

    # -------------------------------------------------------------------------------------------------- step log

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to the step log; it survives a kill of this process from here on."""
        self._opened()
        if self._curve is None:
            cut_torn_line(self.folder / CURVE)
            self._curve = open(self.folder / CURVE, "a", encoding="ascii")  # noqa: SIM115 - closed by close()
        self._curve.write(dumps(row, indent=None) + "\n")
        self._curve.flush()

    def truncate_curve(self, step: int) -> None:
        """Drop the rows after `step`: those of a part that went on from there without being saved."""
        self._opened()
        rows = [row for row in self.curve() if row.get("step", step) <= step]
        self.close()
        write_atomic(self.folder / CURVE, "".join(dumps(row, indent=None) + "\n" for row in rows))

    def drop_validations(self, step: int) -> None:
        """Drop evaluations and weights of steps after `step`: they belong to a part that is trained again."""
        for found in read_evaluations(self.folder):
            if (
                found.role == "step"
                and found.checkpoint != "base"
                and found.checkpoint > step
                and found.folder is not None
            ):
                discard(self.folder / found.folder)
        for kept in (self.folder / "snapshots").glob("step-*"):
            if int(kept.name.removeprefix("step-")) > step:
                discard(kept)

    def curve(self) -> list[dict[str, Any]]:
        """The rows of the step log."""
        return read_curve(self.folder)

    # ----------------------------------------------------------------------------------------------------- state

    def get(self, name: str, default: Any = None) -> Any:
        """A value that `put` stored, in this part or an earlier one."""
        return self._progress.state.get(name, default)

    def put(self, **values: Any) -> None:
        """Store small values; all of one call become visible together."""
        self._opened()
        if self._curve is not None:
            os.fsync(self._curve.fileno())  # a state never speaks of steps that the disk does not have
        self._save(state={**self._progress.state, **values})

    def part_seconds(self, name: str, seconds: float) -> None:
        """Add to the running time of one kind (`setup`, `data`, `train`, ...), over all parts of the run."""
        known = self._progress.seconds
        self._save(seconds={**known, name: known.get(name, 0.0) + seconds})

    @property
    def seconds(self) -> dict[str, float]:
        """Running time by kind, over all parts so far."""
        return dict(self._progress.seconds)

    @property
    def num_parts(self) -> int:
        """How many times the run was started or resumed."""
        return self._progress.num_parts

    @property
    def created_at(self) -> str:
        """When the run was first begun."""
        return self._progress.run.created_at

    @property
    def category(self) -> Category:
        """`test` as soon as one part of the run was: it is never relabelled."""
        return self._progress.run.category

    # ----------------------------------------------------------------------------------------------- evaluations

    def evaluations(self) -> dict[str, Evaluation]:
        """Stored evaluations by key: the record's, and those in the payload."""
        known = {evaluation.key: evaluation for evaluation in self.finished.evaluations} if self.finished else {}
        return {**known, **{evaluation.key: evaluation for evaluation in read_evaluations(self.folder)}}

    def add(
        self,
        evaluation: Evaluation,
        *,
        samples: Iterable[Mapping[str, Any]] = (),
        items: Sequence[str] = (),
        clusters: Sequence[str | None] = (),
        outcomes: Mapping[str, np.ndarray] = {},
    ) -> Evaluation:
        """Store one evaluation, whole or not at all, in place of an older one with its key.

        Args:
            evaluation: Its `folder` (relative to the payload) and `items` are filled in.
            samples: One dict per item, to read and to grade again.
            items: Ids, in the order of the outcomes.
            clusters: For each item the id that it shares with others of its source, or None; empty: none shares any.
            outcomes: Metric: one number per item.
        """
        self._written = True
        name = f"{evaluation.task}-{evaluation.key[:12]}"
        target = self.folder / EVALUATIONS / safe_name(name)
        shown = f"{EVALUATIONS}/{name}"
        return write_evaluation(
            target, evaluation, shown=shown, samples=samples, items=items, clusters=clusters, outcomes=outcomes
        )

    # ---------------------------------------------------------------------------------------------------- ending

    def finish(self, record: Record) -> Record:
        """Make `record` the result of this run; a kill at any moment leaves what the next claim completes.

        Returns:
            The record as written: named after the first folder that ran it, the others among its aliases.
        """
        assert record.status == "finished" and record.key == self.spec.train_key
        self.close()
        if self.finished is not None:
            return self.complete(record)
        record = self._named(record)
        self._folder_there()
        write_atomic(self.folder / PENDING, to_json(record))
        self.folder = settle(self._places, self.folder, record)
        self.finished = record
        return record

    def complete(self, record: Record) -> Record:
        """Rewrite the finished record with evaluations that were added to it."""
        assert self.finished is not None and record.status == "finished" and record.key == self.finished.key
        record = self._named(record)
        write_atomic(record_beside(self.folder), to_json(record))
        self.finished = record
        return record

    def clean(self) -> None:
        """Delete the weights: adapter, checkpoints and snapshots."""
        for name in WEIGHTS:
            discard(self.folder / name)

    def close(self) -> None:
        """Close the step log; writing opens it again."""
        if self._curve is not None:
            self._curve.close()
            self._curve = None

    # ------------------------------------------------------------------------------------- called by the claim only

    def begin(self) -> None:
        """Start a part: from here on a run that ends without a word was killed."""
        self._folder_there()
        self._save(num_parts=self._progress.num_parts + 1)
        self._ending().unlink(missing_ok=True)

    def end(self, error: BaseException | None) -> None:
        """Write how a part ended, unless the run is finished; a part that only met a `UserError` never was."""
        self.close()
        if self.finished is not None:
            return
        if (error is None or isinstance(error, UserError)) and not self._has_content():
            self._withdraw()
            return
        text = f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARACTERS] if error is not None else None
        if isinstance(error, GeneratorExit):
            text = "closed before its end by whoever read its events"
        plain = text.encode("utf-8", "replace").decode() if text is not None else None
        record = unfinished(self.folder, self._progress, status=status_of(error), error=plain)
        write_atomic(self._ending(), to_json(record))

    # ------------------------------------------------------------------------------------------------------------

    def _opened(self) -> None:
        assert self.finished is None, "the run is finished: only evaluations may be added to it"
        self._written = True

    def _save(self, **changes: Any) -> None:
        self._progress = self._progress.model_copy(update=changes)
        self._folder_there()
        write_atomic(self.folder / PROGRESS, dumps(self._progress.model_dump(mode="python")))

    def _folder_there(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # another run has just removed the empty folder of unfinished runs
            self.folder.mkdir(parents=True, exist_ok=True)

    def _ending(self) -> Path:
        return self._places.cancelled / f"{self.folder.name}.json"

    def _has_content(self) -> bool:
        return self._written or (self._fresh and any(path.name != PROGRESS for path in self.folder.iterdir()))

    def _withdraw(self) -> None:
        if self.previous is not None:
            write_atomic(self._ending(), to_json(self.previous))
        if self._fresh:
            discard(self.folder)
            with suppress(OSError):
                self._places.cancelled.rmdir()  # stays when it holds anything
        else:
            self._progress = self._before
            self._save()

    def _named(self, record: Record) -> Record:
        first = self._progress.run
        names = dict.fromkeys((*first.aliases, *record.aliases, record.experiment))
        names.pop(first.experiment, None)
        update = {
            "experiment": first.experiment,
            "task": first.task,
            "aliases": tuple(names),
            "category": first.category,
        }
        return record.model_copy(update=update)


class BaseSlot:
    """Where one evaluation of a bare model is written; runs that start from that model share it.

    Attributes:
        evaluation: What another run stored before, or None: then compute it and `add` it.
    """

    def __init__(self, folder: Path, key: str, *, shown: str) -> None:
        self.folder = folder
        self.key = key
        self.evaluation = read_evaluation(folder)
        self._shown = shown

    def add(
        self,
        evaluation: Evaluation,
        *,
        samples: Iterable[Mapping[str, Any]] = (),
        items: Sequence[str] = (),
        clusters: Sequence[str | None] = (),
        outcomes: Mapping[str, np.ndarray] = {},
    ) -> Evaluation:
        """Store it as `Slot.add` does; its `folder` is relative to the results folder."""
        assert evaluation.key == self.key
        self.evaluation = write_evaluation(
            self.folder,
            evaluation,
            shown=self._shown,
            samples=samples,
            items=items,
            clusters=clusters,
            outcomes=outcomes,
        )
        return self.evaluation


def status_of(error: BaseException | None) -> Status:
    """How a part ended, by what was raised; leaving without a result is a cancellation."""
    if error is None or isinstance(error, (KeyboardInterrupt, GeneratorExit, SystemExit)):
        return "cancelled"
    return "out_of_memory" if ran_out_of_memory(error) else "failed"


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory was refused, by Python, a GPU's allocator or the CPU's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
