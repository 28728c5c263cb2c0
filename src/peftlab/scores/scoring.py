"""Making the evaluations that are wanted, and storing them. Trains nothing; which are wanted says `wanted.py`."""

from __future__ import annotations

import functools
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from peftlab.config.spec import RunSpec
from peftlab.config.task import graded_by, grades_many
from peftlab.digest import digest, folder_digest
from peftlab.errors import UserError
from peftlab.events import Evaluated, Event, Stage
from peftlab.loop import checkpoint
from peftlab.modelling import models, swapping, weights
from peftlab.parallel import processes
from peftlab.protocols import Example
from peftlab.records.record import Evaluation
from peftlab.records.store import BaseSlot, RunStore, Slot
from peftlab.rows import data, texts
from peftlab.scores import agreement, evaluation, grading, language
from peftlab.scores import stored as predicted
from peftlab.scores.grading import Scored
from peftlab.scores.wanted import Wanted, is_current, kept_snapshots, same_start

_TEXT_BATCH_SIZE = 8
LIVE, START = "live", "start"
"""Whose weights an evaluation is of: those in training, the starting model's; else a folder names them."""

Scoring = Generator[Event, None, Evaluation | None]


def _rows_of(spec: RunSpec, wanted: Wanted, rows: data.Rows) -> data.Rows:
    """The rows that an evaluation is of: those of the run's task, or a sample's."""
    return rows if wanted.sampled is None else data.load(wanted.under(spec))


def _regraded(stored: Evaluation | None, folder: Path, spec: RunSpec, examples: Sequence[Example]) -> Scored | None:
    """The grades of stored predictions under the task's present grader; None when they must be made anew."""
    found = predicted.samples(folder) if stored is not None and spec.task.grader is not None else None
    if found is None or [sample["item"] for sample in found] != [example.item for example in examples]:
        return None
    return grading.grade(spec.task, examples, [predicted.prediction(sample) for sample in found], spec.execution)


def score_start(
    spec: RunSpec,
    store: RunStore,
    rows: data.Rows,
    wanted: list[Wanted],
    *,
    run: Slot | None = None,
    bases: swapping.Bases | None = None,
    folder: Path | None = None,
) -> Generator[Event, None, models.Base | None]:
    """Score the bare model where that is wanted; returns the base if it had to be loaded.

    The time is that of `run`, even where it is spent waiting for another process that scores the same model. `bases`
    hands out the model where several are scored; without, it is loaded. `folder` is of a saved adapter of no run.
    """
    base: models.Base | None = None
    for one in wanted:
        started, loading = time.perf_counter(), 0.0
        under, its = one.under(spec), _rows_of(spec, one, rows)
        name = str(spec.data.forgetting) if one.what == "text" else under.task.name
        with store.base_slot(one.key(spec, ""), name) as slot:
            stored = slot.evaluation
            if stored is not None and base is not None:
                same_start(stored, base.facts.get("revision"))
            if stored is not None and is_current(spec, one, stored):
                continue
            again = _regraded(stored, slot.folder, under, getattr(its, one.part)) if one.what != "text" else None
            if stored is not None and again is not None:
                yield from _store(slot, under, one, stored, again)
                continue
            if folder is not None:
                assert bases is not None, "whoever scores saved adapters holds their bases"
                before = _before(one, spec, under, its, bases)
                built = bases.trained(spec, folder)
                yield from score(slot, spec, "", one, its, built, whose=START, before=before)
                continue
            if base is None:
                if bases is None or not bases.holds(spec):
                    yield Stage(text=f"loading {spec.model.id}")
                base = load_base(spec) if bases is None else bases.base(spec)
                loading = time.perf_counter() - started
            yield from score(slot, spec, "", one, its, models.bare(base), whose=START)
        if run is not None:
            run.part_seconds("setup", loading)
            run.part_seconds("start", time.perf_counter() - started - loading)
    return base


def score_trained(
    spec: RunSpec,
    slot: Slot,
    rows: data.Rows,
    wanted: list[Wanted],
    run_key: str,
    *,
    bases: swapping.Bases | None = None,
) -> Generator[Event, None, None]:
    """Score saved weights, each loaded once onto a fresh base, or onto one that `bases` hands out."""
    loaded: tuple[int, models.Built, Path] | None = None
    for one in wanted:
        assert one.step is not None
        stored = slot.evaluations().get(one.key(spec, run_key))
        under, its = one.under(spec), _rows_of(spec, one, rows)
        if stored is not None and one.what != "text":
            again = _regraded(stored, slot.folder / str(stored.folder), under, getattr(its, one.part))
            if again is not None:
                yield from _store(slot, under, one, stored, again)
                continue
        before = _before(one, slot.spec, under, its, bases)
        if before is not None:
            loaded = None  # the base may have been asked for, which ends what was handed out
        if loaded is None or loaded[0] != one.step:
            yield Stage(text=f"loading the saved weights of step {one.step}")
            loaded = None
            started = time.perf_counter()
            folder = weights_folder(slot, one.step).resolve()
            load = weights.load_trained if bases is None else bases.trained
            loaded = (one.step, load(slot.spec, folder), folder)
            if slot.spec.adapter is not None:
                same_model(slot, loaded[1].facts)
            slot.part_seconds("test", time.perf_counter() - started)
        yield from score(slot, spec, run_key, one, its, loaded[1], whose=str(loaded[2]), before=before)


def _before(
    wanted: Wanted, own: RunSpec, under: RunSpec, rows: data.Rows, bases: swapping.Bases | None
) -> agreement.Answers | None:
    """Answers of the starting model, where those of an engine elsewhere must be seen to be of other weights."""
    if wanted.what == "text" or not agreement.is_asked(under):
        return None
    assert bases is not None, "such engines score what is saved, and whoever does that holds its bases"
    return agreement.answers_here(
        lambda: models.bare(bases.base(own)), getattr(rows, wanted.part), under, rows.shots, source=own.base_identity()
    )


def same_rows(slot: Slot, rows: data.Rows, spec: RunSpec) -> None:
    """Refuse to go on with other training rows (or, where they steer, validation rows) than the run began with."""
    before = slot.get("fingerprints")
    parts = ("train", "valid") if spec.train.steered else ("train",)
    changed = [part for part in parts if before is not None and before.get(part) != rows.fingerprints.get(part)]
    if changed:
        raise UserError(
            f"this run began with other rows: {', '.join(changed)} changed since",
            fix="pin the data set's revision in the task file, or start again with --rerun",
        )


def same_model(slot: Slot, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with another revision of an unpinned model than the run began with."""
    before, now = (slot.get("model") or {}).get("revision"), facts.get("revision")
    if None not in (before, now) and before != now:
        raise UserError(
            f"this run began with revision {before} of its model, now it is {now}",
            fix="pin model.revision, or start again with --rerun",
        )


def _untouched(slot: Slot, step: int) -> None:
    """Refuse weights that are not those which the training wrote."""
    written = slot.get("adapter")
    if (
        step == slot.get("trained")["step"]
        and folder_digest(slot.folder / "adapter", (".safetensors",)) != written["sha256"]
    ):
        raise UserError(
            f"the weights in {slot.folder / 'adapter'} are not those that the training wrote",
            fix="restore them, or run again with --rerun",
        )


def load_base(spec: RunSpec) -> models.Base:
    """The base model of a run, with the head its task needs."""
    return models.load(spec.model, models.kind_of(spec), labels=spec.task.labels, seed=spec.seed, quant=spec.quant)


def require_weights(spec: RunSpec, slot: Slot, wanted: list[Wanted], run_key: str) -> None:
    """Look before anything is computed whether the weights that are to be scored are there.

    What is stored already is at most graded again, which needs none.

    Raises:
        UserError: They were cleaned, altered, or not kept.
    """
    stored = slot.evaluations()
    for one in wanted:
        if one.step is not None and one.key(spec, run_key) not in stored:
            weights_folder(slot, one.step)


def weights_folder(slot: Slot, step: int) -> Path:
    """Where the weights of a step lie.

    Raises:
        UserError: They were not kept.
    """
    trained = slot.get("trained") or {}
    if step == trained.get("step"):
        folder = slot.folder / "adapter"
        if not folder.is_dir():
            fix = "they were cleaned; run the experiment again with --rerun"
            raise UserError(f"no saved weights at {folder}", fix=fix)
        _untouched(slot, step)
        return folder
    folder = slot.folder / "snapshots" / checkpoint.name(step)
    if step == trained.get("last_step") and not folder.is_dir():
        folder = folder.with_name(weights.LAST)
    if not folder.is_dir():
        raise UserError(
            f"no weights of step {step} were kept (kept: {list(kept_snapshots(slot)) or 'none'} and the result)",
            fix="they are kept at each eval_steps with load_best_model_at_end=true, or with evaluate=none or valid",
        )
    return folder


def _store(slot: Slot | BaseSlot, spec: RunSpec, wanted: Wanted, stored: Evaluation, again: Scored) -> Scoring:
    """Put new grades in the place of old ones; the predictions stay."""
    kept_notes = predicted.lasting(stored.notes)
    notes = {**again.notes, **kept_notes}
    changes = {"metrics": again.metrics, "grader": graded_by(spec.task), "baselines": again.baselines, "notes": notes}
    found = stored.model_copy(update=changes)
    kept = slot.add(found, samples=again.samples, items=again.items, clusters=again.clusters, outcomes=again.outcomes)
    yield Evaluated(evaluation=kept)
    return kept


def score(
    slot: Slot | BaseSlot,
    spec: RunSpec,
    run_key: str,
    wanted: Wanted,
    rows: data.Rows,
    built: models.Built,
    *,
    whose: str,
    before: agreement.Answers | None = None,
) -> Scoring:
    """Score, store, and announce one evaluation; returns it as stored.

    `whose` tells the other processes of a launch whose weights these are (`following.py`). `before` are some answers of
    the starting model, for engines that have weights of their own.
    """
    started, under = time.perf_counter(), wanted.under(spec)
    partial, agreed = rows.partial, dict[str, Any]()

    def put(made: Scored, *, judged: bool = True) -> Evaluation:
        found = _described(spec, run_key, wanted, made, built, judged=judged)
        told = {"notes": {**found.notes, **agreed}, "partial": partial, "seconds": time.perf_counter() - started}
        found = found.model_copy(update=told)
        return slot.add(found, samples=made.samples, items=made.items, clusters=made.clusters, outcomes=made.outcomes)

    name = "the general text" if wanted.what == "text" else f"the {wanted.part} rows of {under.task.name}"
    who = "the starting model" if wanted.step is None else f"step {wanted.step}"
    who = who if wanted.adapter is None else f"the adapter {spec.folder}"
    yield Stage(text=f"scoring {who} on {name}")
    if wanted.what == "text":
        text = texts.for_forgetting(spec.data.forgetting)
        assert not isinstance(text, str), "an unavailable text is not wanted"
        scored = yield from language.text_loss(
            built, text[0], batch_size=_TEXT_BATCH_SIZE, row_tokens=text[1]["row_tokens"]
        )
        partial = bool(text[1].get("partial"))
    else:
        sampled = None if wanted.sampled is None else [wanted.sampled.benchmark, wanted.sampled.named]
        processes.tell(do="score", part=wanted.part, whose=whose, sampled=sampled)
        examples = getattr(rows, wanted.part)
        if examples and agreement.is_asked(under):
            source = wanted.source(spec, run_key)
            told = yield from agreement.reached(built, examples, under, rows.shots, source=source, start=before)
            agreed = {predicted.AGREEMENT: told}
        keep = functools.partial(put, judged=False)
        scored = yield from evaluation.score(built, examples, under, shots=rows.shots, keep=keep)
    stored = put(scored)
    if isinstance(slot, Slot):
        slot.part_seconds("validation" if wanted.role == "step" else "test", time.perf_counter() - started)
    yield Evaluated(evaluation=stored)
    return stored


def _described(
    spec: RunSpec, run_key: str, wanted: Wanted, scored: Scored, built: models.Built, *, judged: bool
) -> Evaluation:
    """An evaluation as it is stored; without a grader where predictions are not judged yet."""
    under = wanted.under(spec)
    sample = {} if wanted.sampled is None else {"benchmark": wanted.sampled.suite}
    return Evaluation(
        key=wanted.key(spec, run_key),
        what=wanted.what,
        task=str(spec.data.forgetting) if wanted.what == "text" else under.task.name,
        part=wanted.part,
        checkpoint="base" if wanted.step is None else wanted.step,
        role=wanted.role,
        metrics=scored.metrics,
        num_items=len(scored.items),
        grader=graded_by(under.task) if judged and wanted.what != "text" else None,
        baselines=scored.baselines,
        settings={**_settings(under, wanted.adapter), **sample, "loaded_revision": built.facts.get("revision")},
        num_tokens=scored.num_tokens,
        notes=scored.notes,
    )


def _settings(spec: RunSpec, adapter: str | None) -> Mapping[str, Any]:
    identity, name = spec.base_identity(), spec.model.id
    if adapter is not None:  # base and adapter together are another model
        identity = {**identity, "content": digest([identity.get("content"), adapter])}
        name = f"{name}+{Path(spec.folder).name}"
    limits = {"execution": spec.execution.model_dump(mode="json")} if grades_many(spec.task) else {}
    return {
        "model": identity,
        "model_id": name,
        "generation": spec.generation.model_dump(mode="json"),
        **limits,
        **agreement.endpoint_of(spec),
        "per_device_eval_batch_size": spec.batch.per_device_eval_batch_size,
        "device": models.default_device().type,
        "threads": torch.get_num_threads(),
    }
