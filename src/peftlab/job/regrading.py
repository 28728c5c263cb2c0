"""Stored predictions graded again: nothing is predicted, no model and no torch is loaded.

Without another grader the grades are those that the task asks for now, in the place of the old ones. Another grader's
come beside them, under names that begin with its own: the task's metrics stay what they are, so that what other runs
share with this one (the starting model's scores) stays comparable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftlab.config import task as tasks
from peftlab.config.groups import DataSettings, ExecutionSettings, GenerationSettings
from peftlab.config.settings import validated
from peftlab.config.spec import RunSpec
from peftlab.config.task import PARTS, GraderChoice, Task
from peftlab.errors import UserError, unknown_name
from peftlab.events import Evaluated, Event, Finished, Stage
from peftlab.protocols import Example, Grader, find, metric_name
from peftlab.records import exchange
from peftlab.records.atomic import safe_name
from peftlab.records.record import Evaluation, Record
from peftlab.records.store import RunStore, Slot
from peftlab.rows import data
from peftlab.scores import grading, stored
from peftlab.scores.grading import Scored

Events = Iterator[Event]


@dataclass(frozen=True, kw_only=True)
class Another:
    """A grader that is not the task's, with the modes asked for."""

    name: str
    modes: tuple[str, ...]
    grader: Grader

    @property
    def short(self) -> str:
        """What its metrics begin with."""
        return self.name.rpartition(":")[2].lower()


def regrade(
    reference: str | Sequence[str],
    store: RunStore,
    *,
    task: str | None = None,
    grader: str | None = None,
    allow_unsafe_code: bool = False,
) -> Events:
    """Grade the stored predictions of finished runs, and of the models that they started from, again.

    Args:
        reference: One or several runs, as `store.find` takes them.
        store: Where the records lie.
        task: Only what was scored on this task (a name, or a YAML's path); None: on any that can be found.
        grader: Another grader, `NAME` or `NAME/MODE,MODE`; None: the task's own.
        allow_unsafe_code: Whether programs are run where nothing isolates them.

    Raises:
        UserError: No such run, grader or task, or a run whose files changed since.
    """
    another = None if grader is None else _another(grader)
    named = None if task is None else tasks.load(task)
    words = [reference] if isinstance(reference, str) else list(reference)
    found = [(word, record) for word in words for record in store.find(word)]
    chosen = [(word, record, None if _holds_answers(record) else _own(record, store)) for word, record in found]
    for word, record, own in chosen:
        if own is None:
            yield from _imported(word, record, store, named, another, unsafe=allow_unsafe_code)
            continue
        with store.claim(own, category=record.category) as slot:
            yield from _run(word, record, own, slot, store, named, another, unsafe=allow_unsafe_code)


def _another(written: str) -> Another:
    name, _, modes = written.partition("/")
    found: Grader = find("graders", name, where="--grader")
    wanted = tuple(modes.split(",")) if modes else found.modes
    for mode in wanted:
        if mode not in found.modes:
            raise unknown_name(f"mode of {name}", mode, found.modes, where="--grader")
    return Another(name=name, modes=wanted, grader=found)


def _own(record: Record, store: RunStore) -> RunSpec:
    if record.imported_from is not None:
        raise UserError(
            f"{record.stem} was imported from {record.imported_from}: its predictions were not stored here",
            fix="name a run that was made here",
        )
    own = validated(RunSpec, record.spec, where=str(store.path_of(record)))
    if own.train_key != record.key:
        raise UserError(
            f"{record.stem}: the files of its model or its data, or the grader that steered it, are not those it was "
            "trained with",
            fix="restore them, or run it again",
        )
    return own


def _holds_answers(record: Record) -> bool:
    """Whether a result from elsewhere came with its answers."""
    return record.imported_from is not None and any(old.folder is not None for old in record.evaluations)


def _imported(
    word: str, record: Record, store: RunStore, named: Task | None, another: Another | None, *, unsafe: bool
) -> Events:
    """Grade a result from elsewhere again: its references stand beside its answers, and its rows are not ours.

    Without another grader it is graded as it was when it was imported.
    """
    done: dict[str, Evaluation] = {}
    for old in record.evaluations:
        folder = store.evaluation_folder(record, old)
        samples = stored.samples(folder) if folder is not None else None
        if folder is None or samples is None or old.grader is None or (named is not None and old.task != named.name):
            continue
        was = GraderChoice(name=old.grader["name"], modes=tuple(old.grader["modes"]))
        metrics = {name: metric.direction for name, metric in old.metrics.items()}
        task = tasks.load(old.task).model_copy(update={"grader": was, "metrics": metrics})
        examples = [
            Example(
                item=sample["item"],
                reference=sample["reference"],
                choices=tuple(sample.get("choices", ())),
                columns=sample["columns"],
            )
            for sample in samples
        ]
        new, scored = _graded(task, examples, samples, old, folder, another, unsafe=unsafe)
        kept = [{**sample, **made} for sample, made in zip(samples, scored.samples, strict=True)]
        done[old.key] = exchange.store_items(
            store, record, new, samples=kept, items=scored.items, outcomes=scored.outcomes
        )
        yield Evaluated(evaluation=done[old.key], of=word)
    completed = record.model_copy(update={"evaluations": tuple(done.get(old.key, old) for old in record.evaluations)})
    yield Finished(record=completed, path=str(exchange.replace(store, completed)), reused=not done)


def _run(
    word: str,
    record: Record,
    own: RunSpec,
    slot: Slot,
    store: RunStore,
    named: Task | None,
    another: Another | None,
    *,
    unsafe: bool,
) -> Events:
    done: dict[str, Evaluation] = {}
    known: dict[tuple[str, str], dict[str, Example]] = {}
    for old in record.evaluations:
        if old.what == "text" or old.grader is None or (named is not None and old.task != named.name):
            continue
        if named is None and old.what == "task" and old.task != own.task.name and old.task not in tasks.available():
            yield Stage(text=f"left as it is: of task '{old.task}' no file is known; name it with --task")
            continue
        task = named or (own.task if old.task == own.task.name else tasks.load(old.task))
        folder = store.evaluation_folder(record, old)
        samples = stored.samples(folder) if folder is not None else None
        if folder is None or samples is None:
            yield Stage(text=f"left as it is: no predictions of {old.task} {old.part} are stored")
            continue
        if (task.name, old.part) not in known:
            yield Stage(text=f"reading the rows of {task.name}")
            known[task.name, old.part] = _examples(own, task, old.part)
        rows = known[task.name, old.part]
        absent = [sample["item"] for sample in samples if sample["item"] not in rows]
        if absent:
            yield Stage(text=f"left as it is: {len(absent)} items of {old.task} {old.part} are not in its rows now")
            continue
        examples = [rows[sample["item"]] for sample in samples]
        new, scored = _graded(task, examples, samples, old, folder, another, unsafe=unsafe)
        done[old.key] = _write(slot, store, new, scored)
        yield Evaluated(evaluation=done[old.key], of=word)
    evaluations = tuple(done.get(old.key, old) for old in record.evaluations)
    completed = slot.complete(record.model_copy(update={"evaluations": evaluations}))
    yield Finished(record=completed, path=str(store.path_of(completed)), reused=not done)


def _examples(own: RunSpec, task: Task, part: str) -> dict[str, Example]:
    """Every row that the part's source has, by item: which of them were drawn the samples say."""
    source = getattr(task, part)
    if source is None:
        return {}
    whole = source.model_copy(update={"sample": None, "max_characters": None})
    alone = task.model_copy(update={**dict.fromkeys(PARTS), part: whole})
    plain = {"task": alone, "data": DataSettings(), "generation": GenerationSettings()}
    rows = data.load(own.model_copy(update=plain))
    return {example.item: example for example in getattr(rows, part)}


def _graded(
    task: Task,
    examples: Sequence[Example],
    samples: Sequence[dict[str, Any]],
    old: Evaluation,
    folder: Path,
    another: Another | None,
    *,
    unsafe: bool,
) -> tuple[Evaluation, Scored]:
    predictions = [stored.prediction(sample) for sample in samples]
    limits = _limits(old, unsafe=unsafe)
    if another is None:
        scored = grading.grade(task, examples, predictions, limits)
        kept = stored.lasting(old.notes)
        update = {"grader": tasks.graded_by(task), "metrics": scored.metrics, "baselines": scored.baselines}
        return old.model_copy(update={**update, "notes": {**scored.notes, **kept}}), scored
    measured = [*(metric_name(another.grader, mode) for mode in another.modes), *another.grader.corpus_metrics]
    choice = GraderChoice(name=another.name, modes=another.modes)
    own = task.grader is not None and task.grader.name == another.name
    better = {name: "lower" if name in another.grader.lower else "higher" for name in measured}
    asked = {"grader": choice, "metrics": {**better, **(task.metrics if own else {})}}
    scored = grading.grade(task.model_copy(update=asked), examples, predictions, limits)
    begins = "" if own else f"{another.short}_"
    return _beside(old, scored, samples, folder, another, begins)


def _limits(old: Evaluation, *, unsafe: bool) -> ExecutionSettings:
    """What programs may use: what they might when they were graded first; whether without isolation is said anew."""
    before = old.settings.get("execution") or {}
    where = f"the stored evaluation {old.key} [execution]"
    return validated(ExecutionSettings, {**before, "allow_unsafe_code": unsafe}, where=where)


def _beside(
    old: Evaluation, found: Scored, samples: Sequence[dict[str, Any]], folder: Path, another: Another, begins: str
) -> tuple[Evaluation, Scored]:
    """The old grades with another grader's beside them; the names of its metrics begin with `begins`."""
    name_of = {name: begins + name for name in found.metrics}
    outcomes = {name: _outcomes(folder, name) for name in old.metrics}
    outcomes.update({name_of[name]: values for name, values in found.outcomes.items()})
    metrics = {**old.metrics, **{name_of[name]: metric for name, metric in found.metrics.items()}}
    graded = []
    for sample, new in zip(samples, found.samples, strict=True):
        theirs = {f"{another.name}/{mode}": grade for mode, grade in new["grades"].items()}
        graded.append({**sample, "grades": {**sample["grades"], **theirs}})
    also = {**old.notes.get("also_graded_by", {}), another.name: another.grader.version}
    notes = {**old.notes, "also_graded_by": also}
    scored = Scored(
        metrics=metrics, outcomes=outcomes, samples=graded, items=found.items, clusters=found.clusters, notes=notes
    )
    return old.model_copy(update={"metrics": metrics, "notes": notes}), scored


def _outcomes(folder: Path, metric: str) -> np.ndarray:
    path = folder / f"{safe_name(metric)}.npy"
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error})", fix="grade again without --grader first") from None
    return found


def _write(slot: Slot, store: RunStore, new: Evaluation, scored: Scored) -> Evaluation:
    content: dict[str, Any] = {"samples": scored.samples, "items": scored.items, "clusters": scored.clusters}
    if new.checkpoint != "base":
        return slot.add(new, outcomes=scored.outcomes, **content)
    with store.base_slot(new.key, new.task) as base:
        return base.add(new, outcomes=scored.outcomes, **content)
