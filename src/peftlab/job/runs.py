"""The main job as a generator of events, top to bottom: claim, score the starting model, train, evaluate, record.

Whoever drains `events` gets a finished record or an honest ending; closing it early records `cancelled`. What is done
is never done again; what is half done goes on where it stopped.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab import measure
from peftlab.config.spec import RunSpec
from peftlab.digest import folder_digest
from peftlab.errors import UserError
from peftlab.events import Event, Finished, Saved, Stage, Started, Step
from peftlab.job import following, handover, preflight, resuming, tracking
from peftlab.job.assembly import assemble
from peftlab.loop import checkpoint, preparation, training
from peftlab.modelling import adapting, bookkeeping, models, weights
from peftlab.parallel import processes
from peftlab.records.payload import PLAIN
from peftlab.records.record import Evaluation, Record
from peftlab.records.store import RunStore, Slot
from peftlab.rows import data
from peftlab.rows.batching import Stream
from peftlab.scores import evaluation, scoring
from peftlab.scores import wanted as wanting
from peftlab.scores.wanted import Wanted

Events = Iterator[Event]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is carried out; none of it changes a result.

    Attributes:
        clean: Delete the weights when the record is written.
        rerun: Set a finished record aside and start afresh.
        any_environment: Resume a checkpoint that was written under other versions or threads.
        resume_from_checkpoint: A checkpoint that must be this run's. It goes on from its newest one in any case.
        branch: The git branch on which a run counts as `main`; the variable PEFTLAB_BRANCH names another.
    """

    clean: bool = False
    rerun: bool = False
    any_environment: bool = False
    resume_from_checkpoint: str | None = None
    branch: str = os.environ.get("PEFTLAB_BRANCH", "main")


def run(spec: RunSpec, store: RunStore | None = None, options: Options | None = None) -> Record:
    """Train and evaluate `spec` unless that is done; return its record. Resumes what was interrupted.

    Raises:
        UserError: Anything the user can mend.
    """
    record: Record | None = None
    for event in events(spec, store or RunStore(), options):
        if isinstance(event, Finished):
            record = event.record
    assert record is not None
    return record


def events(spec: RunSpec, store: RunStore, options: Options | None = None) -> Events:
    """Train `spec` unless that is done, add the evaluations that are missing; the last event carries the record."""
    options = options or Options()
    if not processes.join(spec.launch.num_processes).leads:
        yield from following.follow(spec)
        return
    ended = False
    try:
        yield from _led(spec, store, options)
        ended = True
    finally:
        if not ended:
            processes.leave()  # the others wait for this one: now they are told


def _led(spec: RunSpec, store: RunStore, options: Options) -> Events:
    """The whole run, as its leading (mostly its only) process sees it."""
    place = Path(spec.folder) if spec.folder else Path.cwd()
    folder = place.parent if place.is_file() else place
    git = measure.git_snapshot(folder, branch=options.branch, apart=store.places.all())
    handover.check(spec, apart=store.places.all())
    if options.resume_from_checkpoint is not None:
        yield Stage(text=resuming.check(options.resume_from_checkpoint, spec, store))
    with store.claim(spec, category=git["category"], rerun=options.rerun) as slot:
        for event in _claimed(spec, store, slot, options, git):
            last = event
            if isinstance(event, Finished):
                handover.write(spec, event.record, slot.curve(), slot.folder)
                if options.clean:
                    slot.clean()
            yield event
    assert isinstance(last, Finished), "a run ends with Finished"
    processes.tell(do="end", path=last.path, reused=last.reused)


def _claimed(spec: RunSpec, store: RunStore, slot: Slot, options: Options, git: Mapping[str, Any]) -> Events:
    trained = slot.get("trained")
    if slot.finished is not None and trained is None and not _asks_for_more(spec, slot.finished):
        yield Finished(record=slot.finished, path=str(store.path_of(slot.finished)), reused=True)
        return
    if trained is not None and not _missing(spec, store, slot, trained) and slot.finished is not None:
        record = assemble(spec, slot, store)  # in the order of this spec: another may have been asked for since
        record = slot.finished if record == slot.finished else slot.complete(record)
        yield Finished(record=record, path=str(store.path_of(record)), reused=True)
        return
    if trained is None and slot.finished is not None:
        raise UserError(
            f"the record of {spec.stem} is there, but not its folder, so nothing can be added to it",
            fix="restore the folder, ask with the settings that it was evaluated with, or start again with --rerun",
        )
    if trained is None:
        started = time.perf_counter()
        preflight.check(spec)
        slot.part_seconds("setup", time.perf_counter() - started)
    work = _work(spec, store, slot, options, git)
    record = yield from tracking.tracked(work, spec, slot, bases=store.places.main)
    record = slot.complete(record) if slot.finished is not None else slot.finish(record)
    yield Finished(record=record, path=str(store.path_of(record)), reused=False)


def _work(spec: RunSpec, store: RunStore, slot: Slot, options: Options, git: Mapping[str, Any]) -> tracking.Work:
    """Whatever is not done yet; returns the record that this makes, which is still to be written."""
    key, trained = spec.train_key, slot.get("trained")
    started = time.perf_counter()
    yield Stage(text=f"reading the rows of {spec.task.name}")
    rows = data.load(spec)
    scoring.same_rows(slot, rows, spec)
    if trained is None:
        preparation.check_schedule(spec, rows)
        preparation.check_start(spec, rows)
    if slot.finished is None:
        slot.part_seconds("data", time.perf_counter() - started)
    if trained is None:
        wanted = wanting.wanted_evaluations(spec, step=0, role="last")
        start = [one for one in wanting.missing(spec, store, slot, wanted, key) if one.step is None]
        level = measure.current_memory_bytes()  # before the model is there
        base = yield from scoring.score_start(spec, store, rows, start, run=slot)
        yield from _train(spec, rows, slot, base, options, git, level)
        del base
    absent = _missing(spec, store, slot, slot.get("trained"))
    scoring.require_weights(spec, slot, absent, key)
    yield from scoring.score_start(spec, store, rows, [one for one in absent if one.step is None], run=slot)
    yield from scoring.score_trained(spec, slot, rows, [one for one in absent if one.step is not None], key)
    return assemble(spec, slot, store)


def _asks_for_more(spec: RunSpec, record: Record) -> bool:
    """Whether a record without its folder lacks an evaluation that the spec asks for."""
    wanted = wanting.wanted_evaluations(spec, step=record.training["step"], role=record.training["role"])
    have = {found.key for found in record.evaluations}
    return any(one.what == "task" and one.key(spec, record.key) not in have for one in wanted)


def _missing(spec: RunSpec, store: RunStore, slot: Slot, trained: Mapping[str, Any]) -> list[Wanted]:
    wanted = wanting.wanted_evaluations(
        spec, step=trained["step"], role=trained["role"], snapshots=wanting.kept_snapshots(slot)
    )
    return wanting.missing(spec, store, slot, wanted, spec.train_key)


# ------------------------------------------------------------------------------------------------------ training


def _train(
    spec: RunSpec,
    rows: data.Rows,
    slot: Slot,
    base: models.Base | None,
    options: Options,
    git: Mapping[str, Any],
    level: int,
) -> Events:
    """Train from the last checkpoint to the end of the budget, and save what was trained.

    The slot is written to only when everything is ready, so that bad input leaves nothing behind.
    """
    started = time.perf_counter()
    yield Stage(text=f"preparing {spec.method} on {spec.model.id}")
    base = base or scoring.load_base(spec)
    scoring.same_model(slot, base.facts)
    checkpoints = slot.folder / "checkpoints"
    processes.tell(do="train", checkpoints=str(checkpoints.resolve()), any_environment=options.any_environment)
    ready = preparation.prepare(spec, rows, base)
    built, stream, state, due = ready.built, ready.stream, ready.state, ready.due
    with state.split.whole():
        reference = bookkeeping.take_reference(built, gathered=state.split.divides_weights)
        counts = built.num_weights()
    notes = checkpoint.restore(checkpoints, built, stream, state, any_environment=options.any_environment)
    processes.agree(state.step, "the step to go on from")
    notes += [*adapting.notes(spec), *_dropped_keys(built), *_unvalidated(spec, stream, state.total_steps)]
    notes += rows.facts["notes"]
    with state.split.whole():
        yield from _rehearse(spec, rows, built)
    repeated = sum(row["seconds"] for row in slot.curve() if row["step"] > state.step)
    slot.truncate_curve(state.step)
    slot.drop_validations(state.step)
    slot.put(rows=dict(rows.facts), fingerprints=dict(rows.fingerprints), partial=rows.partial, git=dict(git))
    environment = {**measure.environment(), "num_processes": processes.world().size}
    slot.put(tokens=dict(ready.facts), model=dict(built.facts), counts=counts, environment=environment)
    config = slot.get("adapter_config") or measure.plain_config(built.adapter)  # a method may change it as it trains
    slot.put(memory_before_model=level, adapter_config=config)
    slot.part_seconds("setup", time.perf_counter() - started)
    if repeated:
        slot.part_seconds("repeated", repeated)
    unknown_peak = measure.reset_peak_memory()
    yield Started(
        stem=spec.stem,
        folder=str(slot.folder),
        step=state.step,
        max_steps=state.total_steps,
        notes=(*spec.notes, *notes),
    )
    for step in training.steps(built, stream, spec, state):
        slot.log(_curve_row(step))
        yield step
        if due.validation(step):
            with state.split.whole():
                yield from _validate(spec, rows, slot, built, state)
            stops = _stop_early(spec, state)
            processes.tell(do="go on", stop=stops)
            if stops:
                slot.put(stopped_early=step.step)
                break
        if due.checkpoint(step) and step.step < state.total_steps:
            yield _save(spec, slot, built, stream, state, reference, unknown_peak)
    with state.split.whole():
        processes.agree(training.checksum(built), "the trained weights")
        moved = bookkeeping.moved_base_weights(built, reference)
        if moved:
            raise RuntimeError(f"{len(moved)} frozen base weights changed during training, the first is {moved[0]}")
        _keep(spec, slot, built, state, unknown_peak)


def _rehearse(spec: RunSpec, rows: data.Rows, built: models.Built) -> Events:
    """Try the heaviest batch of every part that will be scored, so that out of memory shows before training does."""
    whole, during = spec.train.evaluate == "all", spec.train.evaluate != "none" and spec.train.validates
    parts = [part for part, asked in ((rows.valid, during), (rows.test, whole)) if asked and part]
    if parts:
        yield Stage(text="trying the longest evaluation batch")
    for part in parts:
        evaluation.rehearse(built, part, spec, rows.shots)


def _dropped_keys(built: models.Built) -> list[str]:
    dropped = built.facts.get("dropped_adapter_keys")
    return [f"adapter_config.json: peft knows no {', '.join(dropped)}; empty, hence left out"] if dropped else []


def _unvalidated(spec: RunSpec, stream: Stream, steps: int) -> list[str]:
    """A budget of less than a pass ends before the validation that decides which weights are kept."""
    if (
        not spec.train.steered
        or spec.train.eval_strategy != "epoch"
        or steps * stream.rows_per_step >= len(stream.rows)
    ):
        return []
    return [f"no pass over the rows ends within {steps} steps: nothing is validated, and the last weights are kept"]


def _curve_row(step: Step) -> dict[str, Any]:
    return {name: value for name, value in vars(step).items() if value is not None and name != "ends_epoch"}


def _save(
    spec: RunSpec,
    slot: Slot,
    built: models.Built,
    stream: Stream,
    state: training.State,
    reference: bookkeeping.Reference,
    unknown_peak: str | None,
) -> Saved:
    started = time.perf_counter()
    folder = checkpoint.save(
        slot.folder / "checkpoints", built, stream, state, reference, keep=spec.save.save_total_limit
    )
    _note_peak(slot, unknown_peak)
    seconds = time.perf_counter() - started
    slot.part_seconds("checkpoints", seconds)
    return Saved(step=state.step, folder=str(folder), seconds=seconds)


def _note_peak(slot: Slot, unknown: str | None) -> None:
    peak = measure.peak_memory_bytes()
    before = slot.get("peak_bytes") or 0
    busy = bool(slot.get("shared_machine")) or measure.load_average_shared()
    slot.put(peak_bytes=max(before, peak or 0) or None, peak_note=unknown, shared_machine=busy)


def _validate(spec: RunSpec, rows: data.Rows, slot: Slot, built: models.Built, state: training.State) -> Events:
    """Score the validation rows with the live weights, or keep the weights so that they can be scored later."""
    keeps = spec.train.load_best_model_at_end or spec.train.evaluate != "all"
    if keeps:
        started = time.perf_counter()
        _write_weights(built, slot.folder / "snapshots" / checkpoint.name(state.step))
        slot.part_seconds("checkpoints", time.perf_counter() - started)
    if spec.train.evaluate == "none" or not rows.valid:
        return
    wanted = Wanted(what="task", part="valid", role="step", step=state.step)
    found = slot.evaluations().get(wanted.key(spec, spec.train_key))
    if found is None:
        found = yield from scoring.score(slot, spec, spec.train_key, wanted, rows, built, whose=scoring.LIVE)
        assert found is not None
    if spec.train.steered and (state.best.get("seen", 0) < state.step):
        _remember_best(spec, state, found)


def _remember_best(spec: RunSpec, state: training.State, found: Evaluation) -> None:
    name = spec.train.metric_for_best_model or spec.task.primary_metric
    if name not in found.metrics:
        raise UserError(
            f"train.metric_for_best_model: '{name}' is not measured", fix=f"measured: {', '.join(found.metrics)}"
        )
    metric = found.metrics[name]
    value = metric.mean if metric.direction == "higher" else -metric.mean
    better = not state.best or value > state.best["value"]
    kept = {"step": state.step, "value": value, "without_gain": 0} if better else dict(state.best)
    if not better:
        kept["without_gain"] += 1
    state.best = {**kept, "seen": state.step}


def _stop_early(spec: RunSpec, state: training.State) -> bool:
    patience = spec.train.early_stopping_patience
    return patience is not None and state.best.get("without_gain", 0) >= patience


def _keep(spec: RunSpec, slot: Slot, built: models.Built, state: training.State, unknown_peak: str | None) -> None:
    """Write the weights that count as the result: the last ones, or the best validated."""
    started = time.perf_counter()
    step, role = state.step, "last"
    folder = slot.folder / "adapter"
    if spec.train.load_best_model_at_end and state.best:
        step, role = state.best["step"], "best"
        if step != state.step:
            _write_weights(built, slot.folder / "snapshots" / weights.LAST)
        _copy_weights(slot.folder / "snapshots" / checkpoint.name(step), folder)
    else:
        _write_weights(built, folder)
    weights.discard(slot.folder / PLAIN)
    weights.share(spec, folder, slot.folder / PLAIN)
    _note_peak(slot, unknown_peak)
    adapter = {"bytes": weights.saved_bytes(folder), "sha256": folder_digest(folder, (".safetensors",))}
    slot.part_seconds("checkpoints", time.perf_counter() - started)
    slot.put(
        trained={"step": step, "role": role, "last_step": state.step, "own_objective": bool(state.own_objective)},
        adapter=adapter,
    )
    weights.discard(slot.folder / "checkpoints")


def _write_weights(built: models.Built, folder: Path) -> None:
    writing = folder.with_name(f".{folder.name}.writing")
    weights.discard(writing)
    weights.save(built, writing)
    weights.discard(folder)
    os.replace(writing, folder)


def _copy_weights(source: Path, folder: Path) -> None:
    writing = folder.with_name(f".{folder.name}.writing")
    weights.discard(writing)
    shutil.copytree(source, writing)
    weights.discard(folder)
    os.replace(writing, folder)
