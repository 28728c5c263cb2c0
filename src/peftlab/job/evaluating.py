"""More evaluation of what exists: finished runs, saved adapters, bare models. Trains nothing; `runs.py` makes the runs.

Several are scored in one go: each base is loaded once and adapters are put on in turn, with the scores that each has by
itself. Only what is missing is computed, and each score is stored as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from peftlab.config.spec import RunSpec
from peftlab.digest import digest
from peftlab.errors import UserError
from peftlab.events import Evaluated, Event, Finished, Stage
from peftlab.job import preflight, targets
from peftlab.job.assembly import assemble
from peftlab.job.targets import Ask, Target
from peftlab.modelling import models, swapping
from peftlab.records import room
from peftlab.records.record import Evaluation
from peftlab.records.store import RunStore, Slot
from peftlab.rows import data
from peftlab.scores import agreement, samples, scoring
from peftlab.scores import wanted as wanting
from peftlab.scores.wanted import Role, Wanted

Events = Iterator[Event]
_NO_ROWS = data.Rows(fingerprints={}, facts={})
"""For samples, whose rows are found by their own spec."""


def evaluate(
    reference: str | Sequence[str],
    store: RunStore,
    *,
    task: str | None = None,
    benchmark: str | Sequence[str] = (),
    checkpoint: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    tell_stored: bool = False,
) -> Events:
    """Make further evaluations of finished runs, saved adapters or bare models; records are completed in place.

    Args:
        reference: One or several: a record's path, a run's folder or the adapter folder in it, a unique key prefix, an
            experiment (all its finished runs), the folder of a saved adapter, or a model (`package:...`,
            `hub:org/name`, or a folder with a config.json). Adapters of no run and models need `task` or `benchmark`.
        store: Where the records lie.
        task: Another task; None: the run's own, unless there is a benchmark.
        benchmark: Benchmarks, whose tasks are all asked for, as far as they fit.
        checkpoint: `best`, `last`, or a step whose weights were kept; None: all that `run` would have evaluated.
        overrides: Settings that belong to an evaluation (generation, evaluation batch, rows of the test).
        tell_stored: Whether what was asked for and stored before is told too, as it always is of a benchmark.

    Raises:
        UserError: No such run, weights that were cleaned, or a setting that would change the training.
    """
    named = [reference] if isinstance(reference, str) else list(reference)
    asked = targets.questions(task, [benchmark] if isinstance(benchmark, str) else benchmark)
    found = targets.resolve(named, store, asked, dict(overrides or {}))
    tools = _Tools(store=store, tell_stored=tell_stored)
    for number, target in enumerate(found, start=1):
        if len(found) > 1:
            yield Stage(text=f"{number} of {len(found)}: {target.label}")
        for reason in target.left_out:
            yield Stage(text=f"left out: {reason}")
        made = _run(target, tools, checkpoint) if target.record is not None else _untrained(target, tools)
        for event in made:
            yield replace(event, of=target.named) if isinstance(event, Evaluated) else event


@dataclass
class _Tools:
    """What the targets of one call share: bases that are held, rows that were read, what is to be told."""

    store: RunStore
    tell_stored: bool = False
    bases: swapping.Bases = field(default_factory=swapping.Bases)
    known: dict[str, data.Rows] = field(default_factory=dict)

    def rows(self, spec: RunSpec, *, test_only: bool) -> Iterator[Event]:
        """Read the rows that a spec asks for, unless they are there; `rows_of` has them then."""
        if self._key(spec, test_only) not in self.known:
            yield Stage(text=f"reading the rows of {spec.task.name}")
            task = spec.task
            if test_only and not spec.generation.few_shot:  # which test rows there are depends on no other part
                task = task.model_copy(update={"train": None, "valid": None})
            self.known[self._key(spec, test_only)] = data.load(spec.model_copy(update={"task": task}))

    def rows_of(self, spec: RunSpec, *, test_only: bool) -> data.Rows:
        """Rows that were read."""
        return self.known[self._key(spec, test_only)]

    @staticmethod
    def _key(spec: RunSpec, test_only: bool) -> str:
        data_settings = [spec.data.data_seed, spec.data.allow_overlap, spec.generation.few_shot]
        return digest([spec.task.model_dump(mode="json"), data_settings, test_only])


# ------------------------------------------------------------------------------------------- models and saved adapters


def _untrained(target: Target, tools: _Tools) -> Events:
    """Score a model as it is, or a saved adapter on its base: both are kept as evaluations of bare models."""
    for ask in target.asks:
        spec = ask.spec
        wanted = Wanted(
            what="task" if ask.sampled is None else "sample",
            part="test",
            role="base",
            step=None,
            sampled=ask.sampled,
            adapter=target.content,
        )
        found = tools.store.base_evaluation(wanted.key(spec, ""))
        if found is not None:
            wanting.same_start(found, models.commit_of(spec.model))
            if wanting.is_current(spec, wanted, found):
                yield Evaluated(evaluation=found, reused=True)
                continue
        reason = None if ask.sampled is None else samples.unavailable(ask.sampled.task)
        if reason is not None:
            yield Stage(text=f"left out: {reason}")
            continue
        preflight.reach(spec, [wanted])
        rows = _NO_ROWS
        if ask.sampled is None:
            yield from tools.rows(spec, test_only=True)
            rows = tools.rows_of(spec, test_only=True)
        with room.advised(spec, trains=False):
            yield from scoring.score_start(spec, tools.store, rows, [wanted], bases=tools.bases, folder=target.folder)


# --------------------------------------------------------------------------------------------------------------- runs


def _run(target: Target, tools: _Tools, checkpoint: str | None) -> Events:
    """Complete the record of a finished run."""
    record, own, store = target.record, target.spec, tools.store
    assert record is not None
    with store.claim(own, category=record.category) as slot:
        trained = slot.get("trained")
        if trained is None or slot.finished is None:
            raise UserError(f"{record.stem} is not trained yet", fix="finish it first: peftlab run")
        asked = [(ask, one) for ask in target.asks for one in _asked_for(ask, slot, trained, checkpoint)]
        absent: list[tuple[Ask, Wanted]] = []
        for ask in target.asks:
            wanted = [one for its, one in asked if its is ask]
            missing = wanting.missing(ask.spec, store, slot, wanted, own.train_key)
            scoring.require_weights(ask.spec, slot, missing, own.train_key)
            preflight.reach(ask.spec, missing)
            if missing:
                preflight.check_grading(ask.spec)
            absent += [(ask, one) for one in missing]
        yield from _made(absent, slot, tools, own)
        plain = [ask.spec for ask in target.asks if ask.sampled is None and ask.spec.task == own.task]
        extra = [(ask.spec, one) for ask, one in asked]
        shown = _as_asked(own, plain[0], checkpoint) if plain else own
        completed = slot.complete(assemble(shown, slot, store, extra=extra))
        yield from _there_before(asked, absent, slot, tools, own.train_key)
        yield Finished(record=completed, path=str(store.path_of(completed)), reused=not absent)


def _made(absent: Sequence[tuple[Ask, Wanted]], slot: Slot, tools: _Tools, own: RunSpec) -> Events:
    """Make what is missing: first all of the bare model's, then all of the trained weights'."""
    rows: dict[int, data.Rows] = {}
    for ask, one in absent:
        if id(ask) in rows:
            continue
        rows[id(ask)] = _NO_ROWS
        if one.sampled is None:
            another = ask.spec.task != own.task
            test_only = another and ask.of_benchmark
            yield from tools.rows(ask.spec, test_only=test_only)
            rows[id(ask)] = tools.rows_of(ask.spec, test_only=test_only)
            if another:
                yield from tools.rows(own, test_only=False)
                data.refuse_overlap(ask.spec, rows[id(ask)], own, trained_on=tools.rows_of(own, test_only=False).train)
            else:
                scoring.same_rows(slot, rows[id(ask)], own)
    for ask, one in sorted(absent, key=lambda pair: pair[1].step is not None):
        with room.advised(ask.spec, trains=False):
            if one.step is None:
                yield from scoring.score_start(ask.spec, tools.store, rows[id(ask)], [one], run=slot, bases=tools.bases)
            else:
                yield from scoring.score_trained(ask.spec, slot, rows[id(ask)], [one], own.train_key, bases=tools.bases)


def _there_before(
    asked: Sequence[tuple[Ask, Wanted]],
    absent: Sequence[tuple[Ask, Wanted]],
    slot: Slot,
    tools: _Tools,
    run_key: str,
) -> Events:
    """What a benchmark asks for and was stored before, so that its table is whole; or all that was."""
    made = {one.key(ask.spec, run_key) for ask, one in absent}
    for ask, one in asked:
        key = one.key(ask.spec, run_key)
        if (ask.of_benchmark or tools.tell_stored) and key not in made:
            found = tools.store.base_evaluation(key) if one.step is None else slot.evaluations().get(key)
            if found is not None:
                yield Evaluated(evaluation=found, reused=True)
            elif one.sampled is not None and one.step is not None:
                yield Stage(text=f"left out: {samples.unavailable(one.sampled.task)}")


def _as_asked(own: RunSpec, spec: RunSpec, checkpoint: str | None) -> RunSpec:
    """The config that the completed record shows: the run's own, evaluated whole when that is what was asked."""
    whole = own.model_copy(update={"train": own.train.model_copy(update={"evaluate": "all"})})
    return whole if checkpoint is None and spec == whole else own


def _asked_for(ask: Ask, slot: Slot, trained: Mapping[str, Any], checkpoint: str | None) -> list[Wanted]:
    """The evaluations of one checkpoint, or, unnamed, all that `run` makes; of a benchmark the test rows alone."""
    spec = ask.spec
    if ask.sampled is not None:
        both: list[tuple[Role, int | None]] = [("base", None), (trained["role"], trained["step"])]
        wanted = [Wanted(what="sample", part="test", role=role, step=step, sampled=ask.sampled) for role, step in both]
    else:
        wanted = wanting.wanted_evaluations(
            spec, step=trained["step"], role=trained["role"], snapshots=wanting.kept_snapshots(slot)
        )
        if ask.of_benchmark:
            wanted = [one for one in wanted if (one.what, one.part) == ("task", "test")]
    if agreement.is_asked(spec):  # one name on a server is one set of weights: steps are asked for one by one
        wanted = [one for one in wanted if one.role != "step"]
    if checkpoint is None or checkpoint == trained["role"]:
        return wanted
    step = _named_step(slot, spec, trained, checkpoint)
    role: Role = trained["role"] if step == trained["step"] else "step"  # one step has one role, however it is named
    return [
        replace(one, role=role, step=step) if one.step is not None else one
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
