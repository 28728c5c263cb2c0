"""Records grouped into arms, with their outcomes: what is compared, before anything is compared.

An arm is one configuration; its records differ in their seed only. Draws no conclusion; `compare` does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftlab.config.references import LOCAL_FOLDER
from peftlab.errors import unknown_name
from peftlab.records.record import Evaluation, Record
from peftlab.verdicts import failing
from peftlab.verdicts.outcomes import Outcomes, joined, read, score
from peftlab.verdicts.statistics import Interval

FolderOf = Callable[[Record, Evaluation], Path | None]
"""Where an evaluation's outcomes lie: `<folder>/<metric>.npy`; None: none were stored."""


@dataclass(frozen=True, kw_only=True)
class BareModel:
    """An evaluation of a model without any training: another few-shot count, with a chat template, ..."""

    evaluation: Evaluation
    folder: Path | None


@dataclass(frozen=True, kw_only=True)
class Base:
    """A bare model's score.

    Attributes:
        key: Of the evaluation.
        model: Which model; arms are held against bare models of their own.
        notes: What a reader of the score should know.
    """

    key: str
    label: str
    model: str
    score: Interval
    partial: bool
    outcomes: Outcomes = field(repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Means over the seeds; None where a run did not measure it. Seconds and bytes.

    Attributes:
        peak_memory_bytes: Above the level before the model was loaded.
        shared_machine: Whether other work ran on the machine: then times are upper bounds.
    """

    train_seconds: float | None
    peak_memory_bytes: float | None
    num_trainable_parameters: float | None
    adapter_bytes: float | None
    shared_machine: bool


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One configuration with all its finished seeds.

    Attributes:
        key: The digest that the records share.
        label: The experiment, with the start of the key where two arms share the name.
        trained_on: The task of the training rows.
        score: With an interval over items (one seed), or over seeds and items.
        base: The model that these runs started from, on the same rows; None when not evaluated.
        category: `main`, `test`, or `main and test`.
        imported_from: The dialect of results that were made elsewhere: some have no outcomes per item.
        retention: Change of the score on a general suite, a mean over the seeds; None where a run did not measure it.
        notes: What a reader of the scores should know.
    """

    key: str
    label: str
    experiment: str
    method: str
    trained_on: str
    model: str
    seeds: tuple[int, ...]
    num_items: int | None
    score: Interval
    base: Base | None
    costs: Costs
    partial: bool
    category: str
    status: str = "finished"
    imported_from: str | None = None
    retention: float | None = None
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    outcomes: Outcomes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A record that entered no table, and why."""

    stem: str
    status: str
    reason: str


Scored = tuple[Record, Evaluation]


# ----------------------------------------------------------------------------------------------- which records


def unique(records: Iterable[Record]) -> list[Record]:
    """One record per run: finished before unfinished, main before test, the newest of equals."""
    best: dict[tuple[str, int], Record] = {}
    for record in sorted(records, key=lambda one: (one.status == "finished", one.category == "main", one.created_at)):
        best[record.arm, record.seed] = record
    return sorted(best.values(), key=lambda one: (one.experiment, one.arm, one.seed))


def superseded(records: Iterable[Record]) -> list[LeftOut]:
    """Finished imported results that another one stands for: two files may have one configuration and seed."""
    found = list(records)
    shown = {(record.arm, record.seed): record for record in unique(found)}
    pairs = [(record, shown[record.arm, record.seed]) for record in found]
    return [
        LeftOut(
            stem=old.stem,
            status=old.status,
            reason=f"another imported result of this configuration and seed stands for it: {new.stem}",
        )
        for old, new in pairs
        if old.imported_from is not None and old.status == "finished" and old.key != new.key
    ]


def final(record: Record, part: str) -> list[Evaluation]:
    """The evaluations of the weights that a run ended with (the best, where they were kept), one per task."""
    found: dict[str, Evaluation] = {}
    for role in ("last", "best"):
        for evaluation in record.evaluations:
            if (evaluation.what, evaluation.part, evaluation.role) == ("task", part, role):
                found[evaluation.task] = evaluation
    return list(found.values())


def _ending(record: Record) -> str:
    lines = (record.error or "").strip().splitlines()
    return lines[-1] if lines else record.status


def by_task(
    records: Sequence[Record], metric: str | None, part: str
) -> tuple[dict[str, tuple[str, list[Scored]]], list[LeftOut]]:
    """Finished records by the task that they were scored on, with the task's metric; and the others, with the reason.

    Raises:
        UserError: No record has the metric.
    """
    tables: dict[str, tuple[str, list[Scored]]] = {}
    left_out: list[LeftOut] = []
    known: set[str] = set()
    chosen = {} if metric is not None else _metrics(records, part)
    for record in records:
        reason = None if record.status == "finished" else _ending(record)
        evaluations = final(record, part) if reason is None else []
        if reason is None and not evaluations:
            reason = f"its final weights were not scored on the {part} rows"
        for evaluation in evaluations:
            known.update(evaluation.metrics)
            wanted, rows = tables.setdefault(evaluation.task, (metric or chosen[evaluation.task], []))
            if wanted in evaluation.metrics:
                rows.append((record, evaluation))
            else:
                reason = f"its evaluation on {evaluation.task} has no metric '{wanted}'"
        if reason is not None:
            left_out.append(LeftOut(stem=record.stem, status=record.status, reason=reason))
    if metric is not None and known and metric not in known:
        raise unknown_name("metric", metric, known)
    return {task: table for task, table in sorted(tables.items()) if table[1]}, left_out


def _metrics(records: Sequence[Record], part: str) -> dict[str, str]:
    """The primary metric of each task; of a task with imported runs the first that these have too."""
    own: dict[str, list[str]] = {}
    imported: dict[str, list[list[str]]] = {}
    for record in records:
        for evaluation in final(record, part) if record.status == "finished" else ():
            if record.imported_from is None:
                own.setdefault(evaluation.task, list(evaluation.metrics))
            else:
                imported.setdefault(evaluation.task, []).append(list(evaluation.metrics))
    chosen = {}
    for task in {**own, **imported}:
        names = own.get(task) or list(dict.fromkeys(name for metrics in imported[task] for name in metrics))
        shared = [name for name in names if all(name in metrics for metrics in imported.get(task, ()))]
        chosen[task] = next(iter([*shared, *names]), "")
    return chosen


# -------------------------------------------------------------------------------------------------- their arms


class Reader:
    """Turns the rows of one table into arms; a base that many runs share is read once."""

    def __init__(self, metric: str, folder_of: FolderOf) -> None:
        self._metric = metric
        self._folder_of = folder_of
        self.bases: dict[str, Base] = {}

    def arms(self, rows: Sequence[Scored]) -> list[Arm]:
        """Rows grouped by configuration, in the order of their experiments."""
        groups: dict[str, list[Scored]] = {}
        for record, evaluation in rows:
            groups.setdefault(record.arm, []).append((record, evaluation))
        names = Counter(group[0][0].experiment for group in groups.values())
        return [self._arm(group, alone=names[group[0][0].experiment] == 1) for group in groups.values()]

    def base(
        self, evaluation: Evaluation, folder: Path | None, *, otherwise: str = "", metric: str | None = None
    ) -> Base:
        """A bare model's evaluation, read once per key; under another mode of the grader when `metric` names one."""
        metric = metric or self._metric
        key = evaluation.key if metric == self._metric else f"{evaluation.key} {metric}"
        if key not in self.bases:
            outcomes = read(folder, evaluation, metric)
            label = _base_label(evaluation, otherwise)
            self.bases[key] = Base(
                key=key,
                label=label if metric == self._metric else f"{label}, {metric}",
                model=_model(evaluation, otherwise),
                score=score(outcomes, [evaluation.metrics[metric]]),
                partial=evaluation.partial,
                outcomes=outcomes,
                notes=tuple(filter(None, [failing.said([evaluation])])),
            )
        return self.bases[key]

    def _arm(self, group: Sequence[Scored], *, alone: bool) -> Arm:
        record, evaluation = group[0]
        outcomes = joined([read(self._folder_of(one, found), found, self._metric) for one, found in group])
        categories = sorted({one.category for one, _ in group})
        return Arm(
            key=record.arm,
            label=record.experiment if alone else f"{record.experiment} [{record.arm[:8]}]",
            experiment=record.experiment,
            method=record.method,
            trained_on=record.task,
            model=_model(evaluation, _spec_model(record)),
            seeds=tuple(one.seed for one, _ in group),
            num_items=evaluation.num_items,
            score=score(outcomes, [found.metrics[self._metric] for _, found in group]),
            base=self._own_base(group),
            costs=_costs([one for one, _ in group]),
            partial=any(found.partial or one.training.get("partial") for one, found in group),
            category=" and ".join(categories),
            imported_from=next(iter(sorted(_sources(group))), None),
            retention=_mean((one.training.get("retention") or {}).get("change") for one, _ in group),
            notes=_notes(group, outcomes),
            settings=_protocol(evaluation),
            outcomes=outcomes,
        )

    def _own_base(self, group: Sequence[Scored]) -> Base | None:
        for record, evaluation in group:
            for found in reversed(record.evaluations):
                same = (found.what, found.task, found.part) == ("task", evaluation.task, evaluation.part)
                if found.role == "base" and same and self._metric in found.metrics:
                    known = self.bases.get(found.key)
                    return known or self.base(found, self._folder_of(record, found), otherwise=_spec_model(record))
        return None


def _notes(group: Sequence[Scored], outcomes: Outcomes) -> tuple[str, ...]:
    notes = [outcomes.missing] if outcomes.missing else []
    unpaired = ": unpaired" if outcomes.matrix is None else ""
    notes += [f"imported from {source}{unpaired}" for source in sorted(_sources(group))]
    if any(_protocol(found) != _protocol(group[0][1]) for _, found in group):
        notes.append("the seeds were scored under different settings")
    if any(record.category == "test" for record, _ in group):
        notes.append("holds runs of category test")
    if len({record.before_reason for record, _ in group} - {None}) == 1 and group[0][0].before_reason:
        notes.append(f"no score before training: {group[0][0].before_reason}")
    notes += filter(None, [failing.said([evaluation for _, evaluation in group])])
    return tuple(notes)


def _sources(group: Sequence[Scored]) -> set[str]:
    return {record.imported_from for record, _ in group if record.imported_from is not None}


def _mean(values: Iterable[float | None]) -> float | None:
    """None when one of them is not known."""
    known = list(values)
    numbers = [value for value in known if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(known) else None


def _costs(records: Sequence[Record]) -> Costs:
    costs = [record.cost for record in records]
    return Costs(
        train_seconds=_mean(cost.seconds.get("train") for cost in costs),
        peak_memory_bytes=_mean(cost.added_bytes("maximum") for cost in costs),
        num_trainable_parameters=_mean(cost.num_trainable_parameters for cost in costs),
        adapter_bytes=_mean(cost.adapter_bytes for cost in costs),
        shared_machine=any(cost.shared_machine for cost in costs),
    )


def _protocol(evaluation: Evaluation) -> dict[str, Any]:
    """What of an evaluation's settings can change its scores: not the device, not the threads."""
    return {
        **{f"generation.{name}": value for name, value in (evaluation.settings.get("generation") or {}).items()},
        **{f"endpoint.{name}": value for name, value in (evaluation.settings.get("endpoint") or {}).items()},
        "grader": evaluation.grader,
    }


def _spec_model(record: Record) -> str:
    return str((record.spec.get("model") or {}).get("id") or "the starting model")


def _model(evaluation: Evaluation, otherwise: str) -> str:
    """Which model an evaluation is of, or was trained from: equal texts mean equal weights, in whatever arithmetic."""
    identity = evaluation.settings.get("model")
    if not identity:
        return otherwise
    weights = {name: identity.get(name) for name in ("id", "revision", "content")}
    return json.dumps(weights, sort_keys=True, default=str)


def _base_label(evaluation: Evaluation, otherwise: str) -> str:
    model, generation = evaluation.settings.get("model") or {}, evaluation.settings.get("generation") or {}
    declared = model.get("id") if model.get("id") != LOCAL_FOLDER else otherwise
    written = evaluation.settings.get("model_id") or declared or otherwise or "bare model"
    name = str(written).rstrip("/").rsplit("/", 1)[-1]
    if model.get("id") == LOCAL_FOLDER and model.get("content"):  # of two folders of one name, the content tells which
        name = f"{name} {model['content'][:6]}"
    parts = [name, str(model.get("dtype", "float32"))]
    if generation.get("few_shot") is not None:
        parts.append(f"{generation['few_shot']}-shot")
    if generation.get("chat_template"):
        parts.append("chat template")
    if "endpoint" in evaluation.settings:
        parts.append(f"by {generation.get('engine')}")
    return ", ".join(parts)
