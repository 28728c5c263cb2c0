"""More evaluation of what exists: finished runs, or a bare model. Trains nothing; `runs.py` makes the runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peftlab.config import loading, references
from peftlab.config.settings import validated
from peftlab.config.spec import ADAPTER_FILE, RunSpec
from peftlab.errors import UserError
from peftlab.events import Evaluated, Event, Finished, Stage
from peftlab.job import preflight
from peftlab.job.assembly import assemble
from peftlab.modelling import models
from peftlab.records import room
from peftlab.records.record import Evaluation, Record
from peftlab.records.store import RunStore, Slot
from peftlab.rows import data
from peftlab.scores import scoring
from peftlab.scores.scoring import Role, Wanted

ADAPTER_FOLDER = "adapter"
"""Where a run keeps its result, in its own folder."""

Events = Iterator[Event]


def evaluate(
    reference: str,
    store: RunStore,
    *,
    task: str | None = None,
    checkpoint: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Events:
    """Make further evaluations of finished runs, or of a bare model; the records are completed in place.

    Args:
        reference: A record's path, a run's folder or the adapter folder in it, a unique key prefix, an experiment (all
            its finished runs), or a model reference (`package:...`, `hub:org/name`, or a folder with a config.json),
            which needs `task`.
        store: Where the records lie.
        task: Another task; None: the run's own.
        checkpoint: `best`, `last`, or a step whose weights were kept; None: all that `run` would have evaluated.
        overrides: Settings that belong to an evaluation (generation, evaluation batch, rows of the test).

    Raises:
        UserError: No such run, weights that were cleaned, or a setting that would change the training.
    """
    reference = _run_of(reference)
    model = _named_model(reference)
    if model is not None:
        if task is None:
            raise UserError(f"which task should '{reference}' be scored on?", fix="add --task NAME")
        yield from _evaluate_bare(loading.bare(model, task=task, overrides=overrides), store)
        return
    records = store.find(reference)
    asked = dict(overrides or {})
    for record in records:
        if record.imported_from is not None:
            raise UserError(
                f"{record.stem} was imported from {record.imported_from}: it has scores, but no weights to score again",
                fix="train its experiment here",
            )
        own = validated(RunSpec, record.spec, where=str(store.path_of(record)))
        loading.refuse_model_code(own.model.model_dump(), asked, str(store.path_of(record)))
        rest = {key: value for key, value in asked.items() if key != "model.trust_remote_code"}
        changed = loading.with_evaluation(own, task=task, overrides=rest)
        yield from _evaluate_again(record, own, changed, store, checkpoint)


def _run_of(reference: str) -> str:
    """The run that a folder of saved weights lies in; any other reference as it is.

    Raises:
        UserError: A saved adapter that belongs to no run.
    """
    folder = Path(reference).expanduser().resolve()
    run = folder.parent
    if folder.name == ADAPTER_FOLDER and run.with_name(f"{run.name}.json").is_file():
        return str(run)
    if (folder / ADAPTER_FILE).is_file() and any(folder.glob("adapter_model.*")):
        raise UserError(
            f"{reference} is a saved adapter that belongs to no finished run; such a folder cannot be scored yet",
            fix="name a run (a snapshot: its run with --checkpoint STEP), or train its config as an experiment",
        )
    return reference


def _named_model(reference: str) -> str | None:
    """The model that a reference names: `package:...`, `hub:org/name`, or a folder that holds a model."""
    if references.is_package(reference):
        return reference
    if reference.startswith("hub:"):
        return reference.removeprefix("hub:")
    path = Path(reference).expanduser()
    return str(path.resolve()) if (path / "config.json").is_file() else None


def _evaluate_bare(spec: RunSpec, store: RunStore) -> Events:
    preflight.refuse_unsupported(spec)
    reason = scoring.no_start(spec)
    if reason is not None:
        raise UserError(f"a bare model cannot be scored on '{spec.task.name}': {reason}", fix="train it first")
    wanted = [Wanted(what="task", part="test", role="base", step=None)]
    found = store.base_evaluation(wanted[0].key(spec, ""))
    if found is not None:
        scoring.same_start(found, models.commit_of(spec.model))
        yield Evaluated(evaluation=found, reused=True)
        return
    yield Stage(text=f"reading the rows of {spec.task.name}")
    with room.advised(spec, trains=False):
        yield from scoring.score_start(spec, store, data.load(spec), wanted)


def _evaluate_again(record: Record, own: RunSpec, spec: RunSpec, store: RunStore, checkpoint: str | None) -> Events:
    if own.train_key != record.key:
        raise UserError(
            f"{record.stem}: the files of its model or its data, or the grader that steered it, are not those it was "
            "trained with",
            fix="restore them, or run it again",
        )
    _fits(own, spec, record)
    with store.claim(own, category=record.category) as slot:
        trained = slot.get("trained")
        if trained is None or slot.finished is None:
            raise UserError(f"{record.stem} is not trained yet", fix="finish it first: peftlab run")
        wanted = _asked_for(spec, slot, trained, checkpoint)
        absent = scoring.missing(spec, store, slot, wanted, own.train_key)
        if absent:
            scoring.require_weights(spec, slot, absent, own.train_key)
            yield Stage(text=f"reading the rows of {spec.task.name}")
            rows = data.load(spec)
            if spec.task == own.task:
                scoring.same_rows(slot, rows, own)
            else:
                data.refuse_overlap(spec, rows, own)
            start = [one for one in absent if one.step is None]
            asked = [one for one in absent if one.step is not None]
            with room.advised(spec, trains=False):
                yield from scoring.score_start(spec, store, rows, start, run=slot)
                yield from scoring.score_trained(spec, slot, rows, asked, own.train_key)
        completed = assemble(_as_asked(own, spec, checkpoint), slot, store, extra=[(spec, one) for one in wanted])
        slot.complete(completed)
        yield Finished(record=completed, path=str(store.path_of(completed)), reused=not absent)


def _fits(own: RunSpec, spec: RunSpec, record: Record) -> None:
    """Refuse a task that the trained weights have no head for, or whose classes are not those that the head knows."""
    had, needed = models.kind_of(own), models.kind_of(spec)
    if had != needed:
        raise UserError(
            f"{record.stem} was trained on '{own.task.name}' ({own.task.kind}) and cannot be scored on "
            f"'{spec.task.name}' ({spec.task.kind}): its model has no head for that",
            fix="name a task of a kind that fits, or train on this one",
        )
    if spec.task.labels != own.task.labels:
        raise UserError(
            f"{record.stem} tells apart {', '.join(own.task.labels)}; '{spec.task.name}' has the classes "
            f"{', '.join(spec.task.labels)}",
            fix="name a task with the same 'labels' in the same order, or train on this one",
        )


def _as_asked(own: RunSpec, spec: RunSpec, checkpoint: str | None) -> RunSpec:
    """The config that the completed record shows: the run's own, evaluated whole when that is what was asked."""
    whole = own.model_copy(update={"train": own.train.model_copy(update={"evaluate": "all"})})
    return whole if checkpoint is None and spec == whole else own


def _asked_for(spec: RunSpec, slot: Slot, trained: Mapping[str, Any], checkpoint: str | None) -> list[Wanted]:
    """The evaluations of one checkpoint, or, unnamed, all that `run` makes."""
    wanted = scoring.wanted_evaluations(
        spec, step=trained["step"], role=trained["role"], snapshots=scoring.kept_snapshots(slot)
    )
    if checkpoint is None or checkpoint == trained["role"]:
        return wanted
    step = _named_step(slot, spec, trained, checkpoint)
    role: Role = trained["role"] if step == trained["step"] else "step"  # one step has one role, however it is named
    return [
        Wanted(what=one.what, part=one.part, role=role, step=step) if one.step is not None else one
        for one in wanted
        if one.role in ("base", trained["role"])
    ]


def _named_step(slot: Slot, spec: RunSpec, trained: Mapping[str, Any], checkpoint: str) -> int:
    if checkpoint.isdecimal():
        return int(checkpoint)
    if checkpoint == "last":
        return int(trained["last_step"])
    if checkpoint == "best":
        validated_steps = [
            found
            for found in slot.evaluations().values()
            if found.part == "valid" and found.role == "step" and found.task == spec.task.name
        ]
        if not validated_steps:
            raise UserError("no validation was made, so there is no best checkpoint", fix="name a step, or 'last'")
        return int(max(validated_steps, key=lambda found: _score_of(found, spec)).checkpoint)
    raise UserError(f"--checkpoint {checkpoint}: not best, last or a step", fix="such as --checkpoint 200")


def _score_of(found: Evaluation, spec: RunSpec) -> float:
    metric = found.metrics[spec.train.metric_for_best_model or spec.task.primary_metric]
    return metric.mean if metric.direction == "higher" else -metric.mean
