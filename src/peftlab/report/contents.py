"""What a page shows, as typed data: rows with the numbers of a comparison, and curves of runs.

Takes scores, intervals and costs from `verdicts`; knows nothing of HTML. The page is a function of the results alone:
there is no clock here, so equal results make equal pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from peftlab.records.record import Record
from peftlab.verdicts import columns
from peftlab.verdicts import table as sheets
from peftlab.verdicts.arms import Arm, Base, unique
from peftlab.verdicts.columns import BY_NAME, Direction
from peftlab.verdicts.compare import Comparison, Table

VERSION: Literal[1] = 1
DIGITS = 6
"""Significant digits of curves: a plot shows three."""

_COLUMNS = (
    ("experiment", "method", "seeds", "total_seconds", "train_seconds", "score", "base_score", "train_loss"),
    ("memory_max", "memory_99th", "memory_avg", "trainable_parameters", "adapter_bytes", "created_at", "task"),
    ("forgetting", "retention", "model", "train_samples", "train_tokens", "num_items", "total_parameters", "steps"),
    ("category",),
)
_SHOWN = {"experiment", "method", "seeds", "score", "base_score", "train_seconds", "memory_max"} | {
    "trainable_parameters",
    "adapter_bytes",
}
_MADE_WITH = (
    *("versions", "commits", "python", "system", "processor", "accelerator", "threads", "cores", "git", "model"),
    "imported_from",
)
_COUNTS = {"seeds": "runs", "num_items": "test items"}


class Data(BaseModel):
    """A part of the page's data."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(Data):
    """A column of a table, an axis of a plot.

    Attributes:
        shown: Whether it is there before anybody asks for it.
    """

    name: str
    title: str
    kind: Literal["text", "number", "count", "seconds", "bytes", "time", "score"]
    direction: Direction | None
    shown: bool


class Row(Data):
    """An arm with all its seeds, or a bare model.

    Attributes:
        values: One per column of the sheet; None: not measured, and `unknown` says why, by the column's name.
        intervals: (low, high) by the column's name.
        unpaired: Why no outcomes per item are known, so that nothing can be tested; None: they are.
        runs: Numbers of the arm's runs in the page's list.
    """

    kind: Literal["arm", "base"]
    values: tuple[Any, ...]
    intervals: dict[str, tuple[float, float]]
    unknown: dict[str, str]
    seeds: tuple[int, ...]
    unpaired: str | None
    notes: tuple[str, ...]
    runs: tuple[int, ...]


class Claims(Data):
    """The pairs of a comparison, worded and formatted as on the command line."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Sheet(Data):
    """Everything that was scored on one task with one metric.

    Attributes:
        bars: Labels of the best bare models.
    """

    task: str
    part: str
    metric: str
    direction: Direction
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    bars: tuple[str, ...]
    baselines: dict[str, float]
    claims: Claims
    notes: tuple[str, ...]


class Curve(Data):
    """A series over steps."""

    steps: tuple[int, ...]
    values: tuple[float | None, ...]


class Run(Data):
    """One run with its learning curves: the training loss, and validation metrics by name.

    Attributes:
        own: Settings, and what it was made with, in which it is not as all the others.
    """

    key: str
    experiment: str
    method: str
    model: str | None
    task: str
    seed: int
    status: str
    loss: Curve
    validation: dict[str, Curve]
    own: dict[str, Any]


class LeftOut(Data):
    """A run or a file that is in no table, and why."""

    name: str
    status: str
    reason: str


class Page(Data):
    """All that the page knows.

    Attributes:
        newest: When the newest run began.
        where: The filter that the runs passed; None: all are here.
        shared: Settings that all runs have, and what all were made with.
    """

    version: Literal[1] = VERSION
    folder: str
    peftlab: str
    newest: str | None
    where: str | None
    sheets: tuple[Sheet, ...]
    runs: tuple[Run, ...]
    shared: dict[str, Any]
    left_out: tuple[LeftOut, ...]
    statuses: dict[str, int]


def page(
    comparison: Comparison,
    records: Sequence[Record],
    *,
    folder: str,
    version: str,
    where: str | None = None,
    problems: Sequence[tuple[Path, str]] = (),
) -> Page:
    """The data of a page.

    Args:
        comparison: Of these records.
        records: The runs to show, finished or not.
        folder: What the page is about, for its heading.
        version: Of peftlab.
        where: The filter that the records passed.
        problems: Files that could not be read.
    """
    chosen = unique(records)
    shared, own = _configurations(chosen)
    numbers = {record.key: number for number, record in enumerate(chosen)}
    left_out = [LeftOut(name=one.stem, status=one.status, reason=one.reason) for one in comparison.left_out]
    left_out += [LeftOut(name=str(path), status="not readable", reason=message) for path, message in problems]
    return Page(
        folder=folder,
        peftlab=version,
        newest=max((record.created_at for record in chosen), default=None),
        where=where,
        sheets=tuple(_sheet(table, chosen, numbers) for table in comparison.tables),
        runs=tuple(_run(record, mine) for record, mine in zip(chosen, own, strict=True)),
        shared=shared,
        left_out=tuple(left_out),
        statuses=dict(comparison.statuses),
    )


# ----------------------------------------------------------------------------------------------------------- sheets


def _sheet(table: Table, records: Sequence[Record], numbers: Mapping[str, int]) -> Sheet:
    """A table of the comparison, with the other columns of its records beside the scores."""
    of_arm: dict[str, list[Record]] = {}
    for record in records:
        of_arm.setdefault(record.arm, []).append(record)
    groups = {arm.key: [one for one in of_arm[arm.key] if one.seed in arm.seeds] for arm in table.arms}
    found = _columns(table, [record for group in groups.values() for record in group])
    rows = [_arm(arm, groups[arm.key], table, found, numbers) for arm in table.arms]
    worded = sheets.pairs(table)
    return Sheet(
        task=table.task,
        part=table.part,
        metric=table.metric,
        direction=table.direction,
        columns=found,
        rows=(*rows, *(_base(base, table, found) for base in table.bases)),
        bars=tuple(base.label for base in table.bases if base.key in table.bars),
        baselines=dict(table.baselines),
        claims=Claims(columns=worded.columns, rows=worded.rows),
        notes=table.notes,
    )


def _columns(table: Table, records: Sequence[Record]) -> tuple[Column, ...]:
    """The usual columns in their usual order, then the other metrics of the task."""
    found = [_column(name, table) for group in _COLUMNS for name in group]
    others: dict[str, Direction] = {}
    for record in records:
        for evaluation in record.evaluations:
            if (evaluation.what, evaluation.task, evaluation.part) == ("task", table.task, table.part):
                others.update({name: metric.direction for name, metric in evaluation.metrics.items()})
    others.pop(table.metric, None)
    metrics = [
        Column(name=f"{table.task}.{name}", title=name, kind="score", direction=direction, shown=False)
        for name, direction in others.items()
    ]
    return (*found, *metrics)


def _column(name: str, table: Table) -> Column:
    shown = name in _SHOWN
    if name in ("score", "base_score"):
        title = table.metric if name == "score" else "before training"
        return Column(name=name, title=title, kind="score", direction=table.direction, shown=shown)
    if name in _COUNTS:
        return Column(name=name, title=_COUNTS[name], kind="count", direction=None, shown=shown)
    known = BY_NAME[name]
    return Column(name=name, title=known.title, kind=known.kind, direction=known.direction, shown=shown)


def _arm(arm: Arm, records: Sequence[Record], table: Table, found: Sequence[Column], numbers: Mapping[str, int]) -> Row:
    seen = [columns.values(record, table.task) for record in records]
    values: dict[str, Any] = {
        "experiment": arm.label,
        "seeds": len(arm.seeds),
        "num_items": arm.num_items,
        "score": arm.score.mean,
        "base_score": arm.base.score.mean if arm.base else None,
        "train_seconds": arm.costs.train_seconds,
        "memory_max": arm.costs.peak_memory_bytes,
        "trainable_parameters": arm.costs.num_trainable_parameters,
        "adapter_bytes": arm.costs.adapter_bytes,
        "category": arm.category,
        "created_at": max(record.created_at for record in records),
    }
    for column in found:
        if column.name not in values:
            values[column.name] = _over_seeds(column, [row.get(column.name) for row in seen])
    intervals = {"score": arm.score} | ({"base_score": arm.base.score} if arm.base else {})
    notes = [*arm.notes, *(["part of the data"] if arm.partial else [])]
    notes += ["other work ran on the machine: times are upper bounds"] * arm.costs.shared_machine
    return Row(
        kind="arm",
        values=tuple(values[column.name] for column in found),
        intervals={
            name: (one.low, one.high) for name, one in intervals.items() if one.low is not None and one.high is not None
        },
        unknown={column.name: _why(column, records) for column in found if values[column.name] is None},
        seeds=arm.seeds,
        unpaired=arm.outcomes.missing,
        notes=tuple(note for note in notes if note != arm.outcomes.missing),
        runs=tuple(numbers[record.key] for record in records),
    )


def _base(base: Base, table: Table, found: Sequence[Column]) -> Row:
    values = {"experiment": base.label, "method": "none", "num_items": base.score.n, "score": base.score.mean}
    score = base.score
    notes = [*(["the bar"] if base.key in table.bars else []), *(["part of the data"] if base.partial else [])]
    return Row(
        kind="base",
        values=tuple(values.get(column.name) for column in found),
        intervals={"score": (score.low, score.high)} if score.low is not None and score.high is not None else {},
        unknown={},
        seeds=(),
        unpaired=base.outcomes.missing,
        notes=(*notes, *base.notes),
        runs=(),
    )


def _over_seeds(column: Column, values: Sequence[Any]) -> Any:
    """Numbers as their mean, texts as they are, where they agree; otherwise all of them."""
    if column.kind in ("text", "time"):
        known = list(dict.fromkeys(str(value) for value in values if value is not None))
        return ", ".join(known) if known else None
    return columns.mean(values)


def _why(column: Column, records: Sequence[Record]) -> str:
    if column.name == "base_score":
        return next((one.before_reason for one in records if one.before_reason), "the starting model was not scored")
    if column.name in _COUNTS:
        return columns.NOT_RECORDED
    if column.name not in BY_NAME:
        return "not scored with this metric"
    first = next((one for one in records if BY_NAME[column.name].pick(one) is None), records[0])
    return columns.reason(first, column.name)


# ----------------------------------------------------------------------------------------------------------- curves


def _run(record: Record, own: Mapping[str, Any]) -> Run:
    return Run(
        key=record.key,
        experiment=record.experiment,
        method=record.method,
        model=BY_NAME["model"].pick(record),
        task=record.task,
        seed=record.seed,
        status=record.status,
        loss=_curve(record.curve.get("step", []), record.curve.get("loss", [])),
        validation=_validations(record),
        own=dict(own),
    )


def _validations(record: Record) -> dict[str, Curve]:
    """Of the run's own task, by metric; the starting model's score is step 0.

    Of several of one step, the one under the run's own settings counts.
    """
    points: dict[str, dict[int, float]] = {}
    own = record.spec.get("generation")
    for evaluation in sorted(record.evaluations, key=lambda one: one.settings.get("generation") == own):
        if (evaluation.what, evaluation.task, evaluation.part) == ("task", record.task, "valid"):
            step = 0 if evaluation.checkpoint == "base" else int(evaluation.checkpoint)
            for name, metric in evaluation.metrics.items():
                points.setdefault(name, {})[step] = metric.mean
    return {name: _curve(sorted(found), [found[step] for step in sorted(found)]) for name, found in points.items()}


def _curve(steps: Sequence[Any], values: Sequence[Any]) -> Curve:
    pairs = [(int(step), value) for step, value in zip(steps, values, strict=False) if step is not None]
    return Curve(
        steps=tuple(step for step, _ in pairs),
        values=tuple(None if value is None else float(f"{value:.{DIGITS}g}") for _, value in pairs),
    )


# --------------------------------------------------------------------------------------------------- configurations


def _configurations(records: Sequence[Record]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What all runs have in common, and of each run the rest."""
    found = [_configuration(record) for record in records]
    first = found[0] if found else {}
    absent = object()
    shared = {
        name: value
        for name, value in first.items()
        if all(type(value) is type(one.get(name)) and value == one.get(name, absent) for one in found)
    }
    return shared, [{name: value for name, value in one.items() if name not in shared} for one in found]


def _configuration(record: Record) -> dict[str, Any]:
    """Settings that have a value, by dotted name; then versions and machine."""
    made = {name: value for name, value in record.provenance.items() if name in _MADE_WITH}
    return {**columns.settings(columns.groups(record)), **columns.settings({"made with": made})}
