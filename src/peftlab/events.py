"""What `runs.events` yields: plain values that a display, a tracker or a test reads. No behaviour, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from peftlab.records.record import Evaluation, Record


@dataclass(frozen=True, kw_only=True)
class Started:
    """The run is claimed. `step` is where training goes on from; `max_steps` where it ends."""

    stem: str
    folder: str
    step: int
    max_steps: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the run begins: a sentence for people (`scoring the starting model on 150 items`)."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Within a stage: `done` of `total` items."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step. Loss is per label token (weighted as declared); seconds are wall time of the step alone.

    `method_loss` is the method's own objective (a regulariser), null when it has none. `allocated_bytes` is what
    tensors take of `memory_bytes` on a GPU; null on a CPU.
    """

    step: int
    loss: float
    method_loss: float | None
    learning_rate: float
    grad_norm: float
    tokens: int
    label_tokens: int
    seconds: float
    memory_bytes: int | None
    epoch: float
    ends_epoch: bool = False
    allocated_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation is finished and stored. `of` is what was scored, as the user named it, where several are."""

    evaluation: Evaluation
    reused: bool = False
    of: str | None = None


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint to resume from was written."""

    step: int
    folder: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The record is written. `reused`: it existed and nothing was computed."""

    record: Record
    path: str
    reused: bool


Event = Started | Stage | Progress | Step | Evaluated | Saved | Finished
