"""The files that a run's folder holds, and how each is read and written.

A payload lies beside its record: `<stem>/` and `<stem>.json`. Who may write, and when, is not decided here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from peftlab.config.spec import RunSpec
from peftlab.digest import digest
from peftlab.errors import UserError
from peftlab.records.atomic import new_folder, read_text, safe_name, write_atomic
from peftlab.records.record import Category, Cost, Evaluation, Record, Status, dumps, from_json, loads, to_json

if TYPE_CHECKING:
    import numpy as np

PROGRESS = "progress.json"
CURVE = "curve.jsonl"
EVALUATIONS = "evaluations"
SAMPLES = "samples.jsonl"
PLAIN = "plain"
"""An adapter that belongs on a changed base, once more as one for the base as it was."""

WEIGHTS = ("adapter", PLAIN, "checkpoints", "snapshots")
PENDING = "finished.json"
"""The final record, inside the payload: from the moment it is there the run is finished, whatever happens next."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """The three folders that records lie in."""

    main: Path
    test: Path
    cancelled: Path

    def all(self) -> tuple[Path, Path, Path]:
        """The unfinished first: a run that finishes while a reader goes through them is seen at least once."""
        return self.cancelled, self.main, self.test

    def of(self, record: Record) -> Path:
        """The folder that a record belongs in."""
        if record.status != "finished":
            return self.cancelled
        return self.main if record.category == "main" else self.test


class Progress(BaseModel):
    """`progress.json`: what the run is, and what has to outlive a kill. `run` is the record it would leave now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Record
    num_parts: int = 0
    seconds: dict[str, float] = {}
    state: dict[str, Any] = {}


# --------------------------------------------------------------------------------------------------- reading a payload


def read_record(path: Path) -> Record:
    """The record in a file.

    Raises:
        UserError: It cannot be read as one.
    """
    text = read_text(path)
    if '"$float"' not in text:
        # Three times as fast, which is seconds over ten thousand records; whatever it refuses gets the full treatment.
        with suppress(ValidationError):
            return Record.model_validate_json(text)
    return from_json(text, where=str(path))


def read_progress(payload: Path) -> Progress:
    """The progress of an unfinished run.

    Raises:
        UserError: The file is missing or damaged. It is never overwritten: what it knew is known nowhere else.
    """
    path = payload / PROGRESS
    fix = f"move the folder {payload} away, or delete it, to start the run again"
    if not path.is_file():
        raise UserError(f"{path} is missing", fix=fix)
    try:
        return Progress.model_validate(loads(read_text(path, fix=fix)))
    except ValueError:
        raise UserError(f"{path} is damaged", fix=fix) from None


def read_curve(payload: Path) -> list[dict[str, Any]]:
    """The rows of a step log; a last line without its end was being written when the process died, and is dropped."""
    path = payload / CURVE
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(read_text(path).split("\n")[:-1], start=1):
        try:
            rows.append(dict(loads(line)))
        except (ValueError, TypeError):
            raise UserError(
                f"{path}: line {number} is damaged", fix="delete that line, or move the file away"
            ) from None
    return rows


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The samples of an evaluation's folder.

    Raises:
        UserError: The file is gone or damaged.
    """
    path = folder / SAMPLES
    try:
        return [dict(loads(line)) for line in read_text(path).splitlines() if line]
    except FileNotFoundError:
        raise UserError(f"{path} is gone", fix="evaluate again") from None
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged", fix=f"move the folder {folder} away to evaluate again") from None


def read_evaluations(payload: Path) -> list[Evaluation]:
    """The evaluations stored in a payload, by folder name."""
    parent = payload / EVALUATIONS
    names = sorted(os.listdir(parent)) if parent.is_dir() else []
    found = [read_evaluation(parent / name) for name in names if not name.startswith(".")]
    return [evaluation for evaluation in found if evaluation is not None]


def read_evaluation(folder: Path) -> Evaluation | None:
    """The evaluation in a folder, or None when there is none.

    Raises:
        UserError: Its file is damaged.
    """
    path = folder / "evaluation.json"
    if not path.is_file():
        return None
    try:
        return Evaluation.model_validate(loads(read_text(path)))
    except ValueError:
        raise UserError(f"{path} is damaged", fix=f"move the folder {folder} away to evaluate again") from None


def unfinished(payload: Path, progress: Progress, *, status: Status, error: str | None = None) -> Record:
    """The short record of a run that did not finish: what it is, how far it came, what that cost."""
    update = {
        "status": status,
        "evaluations": tuple(read_evaluations(payload)),
        "curve": thin(read_curve(payload)),
        "cost": Cost(seconds=progress.seconds, num_parts=progress.num_parts),
        "error": error,
    }
    return progress.run.model_copy(update=update)


def first_record(spec: RunSpec, *, category: Category, created_at: str) -> Record:
    """What is known of a run before it begins; `killed` until somebody writes another ending."""
    return Record(
        status="killed",
        category=category,
        key=spec.train_key,
        arm=spec.arm,
        experiment=spec.experiment,
        method=spec.method,
        task=spec.task.name,
        seed=spec.seed,
        created_at=created_at,
        identity=spec.identity(),
        spec=spec.model_dump(mode="json"),
    )


def thin(rows: Sequence[Mapping[str, Any]], at_most: int = 100) -> dict[str, list[Any]]:
    """A step log as columns of about `at_most` points, first and last among them; None where a row has no value.

    Seconds become what a reader of a curve asks for: milliseconds a step, and tokens per second.
    """
    kept = {0, len(rows) - 1} if rows else set()
    others = [number for number in range(len(rows)) if number not in kept]
    room = min(max(at_most - len(kept), 0), len(others))
    kept |= {others[(2 * place + 1) * len(others) // (2 * room)] for place in range(room)}
    chosen = [_with_speed(rows[number]) for number in sorted(kept)]
    return {name: [row.get(name) for row in chosen] for name in dict.fromkeys(name for row in chosen for name in row)}


def _with_speed(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in row.items() if name != "seconds"}
    if "seconds" in row:
        shown["milliseconds"] = round(1000 * row["seconds"], 3)
    if row.get("seconds") and "tokens" in row:
        shown["tokens_per_second"] = round(row["tokens"] / row["seconds"], 1)
    return shown


# ------------------------------------------------------------------------------------------------------------ writing


def settle(places: Places, payload: Path, record: Record) -> Path:
    """Bring a payload and its final record to where they belong; may be repeated after a kill at any point."""
    target = places.of(record) / payload.name
    if payload != target:
        if target.exists():
            raise UserError(f"{target} is in the way of {payload}", fix="move one of the two away; both hold this run")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(payload, target)
    write_atomic(record_beside(target), to_json(record))
    (places.cancelled / f"{payload.name}.json").unlink(missing_ok=True)
    (target / PENDING).unlink(missing_ok=True)
    with suppress(OSError):
        places.cancelled.rmdir()  # stays when it holds anything
    return target


def record_beside(payload: Path) -> Path:
    """The record's file of a payload."""
    return payload.with_name(f"{payload.name}.json")


def cut_torn_line(path: Path) -> None:
    """So that the next row does not continue half a row."""
    if path.is_file():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)


def write_evaluation(
    target: Path,
    evaluation: Evaluation,
    *,
    shown: str,
    samples: Iterable[Mapping[str, Any]],
    items: Sequence[str],
    clusters: Sequence[str | None],
    outcomes: Mapping[str, np.ndarray],
) -> Evaluation:
    """Write an evaluation's folder, whole or not at all; returns it with `folder` (`shown`) and `items` filled in."""
    import numpy as np  # imported late: reading records needs none of it

    filled = evaluation.model_copy(update={"folder": shown, **({"items": digest(list(items))} if items else {})})
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(target) as folder:
        with open(folder / SAMPLES, "w", encoding="ascii") as file:
            for sample in samples:
                file.write(dumps(sample, indent=None) + "\n")
        if items:
            (folder / "items.json").write_text(dumps(list(items), indent=None), encoding="ascii")
        if any(clusters):
            assert len(clusters) == len(items), f"{len(clusters)} clusters for {len(items)} items"
            (folder / "clusters.json").write_text(dumps(list(clusters), indent=None), encoding="ascii")
        for metric, values in outcomes.items():
            assert len(values) == len(items), f"{metric}: {len(values)} outcomes for {len(items)} items"
            with open(folder / f"{safe_name(metric)}.npy", "wb") as array:
                np.save(array, values, allow_pickle=False)
        (folder / "evaluation.json").write_text(dumps(filled.model_dump(mode="python")), encoding="ascii")
    return filled
