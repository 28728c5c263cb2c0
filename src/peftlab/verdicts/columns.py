"""The named columns of a run: what a table shows of it, a plot sets against another, and a filter asks for.

Picks numbers out of records; computes no statistics. A number that a record does not have is None, and `reason` says
why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peftlab.record import Evaluation, Record
from peftlab.verdicts.arms import final

Kind = Literal["text", "number", "count", "seconds", "bytes", "time"]
Direction = Literal["lower", "higher"]

NOT_RECORDED = "not in the record"
NO_LEVEL = "the level before the model was loaded is not in the record"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column that every record can have.

    Attributes:
        direction: Which values are better; None: neither.
        pick: The value, None when it is not known.
        why: The key of `cost.unknown` with the reason for a missing value.
    """

    name: str
    title: str
    kind: Kind
    pick: Callable[[Record], Any]
    direction: Direction | None = None
    why: str = ""


def _memory(name: str) -> Callable[[Record], Any]:
    return lambda record: record.cost.added_bytes(name)


COLUMNS = (
    Column(name="experiment", title="experiment", kind="text", pick=lambda record: record.experiment),
    Column(name="method", title="method", kind="text", pick=lambda record: record.method),
    Column(name="model", title="model", kind="text", pick=lambda record: (record.spec.get("model") or {}).get("id")),
    Column(name="task", title="trained on", kind="text", pick=lambda record: record.task),
    Column(name="seed", title="seed", kind="count", pick=lambda record: record.seed),
    Column(
        name="total_seconds",
        title="total time",
        kind="seconds",
        pick=lambda record: sum(record.cost.seconds.values()) if record.cost.seconds else None,
        direction="lower",
        why="total",
    ),
    Column(
        name="train_seconds",
        title="train time",
        kind="seconds",
        pick=lambda record: record.cost.seconds.get("train"),
        direction="lower",
        why="train",
    ),
    Column(
        name="train_loss",
        title="train loss, last step",
        kind="number",
        pick=lambda record: record.training.get("final_loss"),
        direction="lower",
    ),
    Column(
        name="memory_max",
        title="memory added, maximum",
        kind="bytes",
        pick=_memory("maximum"),
        direction="lower",
        why="memory_bytes",
    ),
    Column(
        name="memory_99th",
        title="memory added, 99th percentile",
        kind="bytes",
        pick=_memory("percentile_99"),
        direction="lower",
        why="memory_bytes",
    ),
    Column(
        name="memory_avg",
        title="memory added, average",
        kind="bytes",
        pick=_memory("average"),
        direction="lower",
        why="memory_bytes",
    ),
    Column(
        name="trainable_parameters",
        title="trainable parameters",
        kind="count",
        pick=lambda record: record.cost.num_trainable_parameters,
        direction="lower",
        why="num_trainable_parameters",
    ),
    Column(
        name="total_parameters",
        title="all parameters",
        kind="count",
        pick=lambda record: record.cost.num_parameters,
        direction="lower",
        why="num_parameters",
    ),
    Column(
        name="adapter_bytes",
        title="file size",
        kind="bytes",
        pick=lambda record: record.cost.adapter_bytes,
        direction="lower",
        why="adapter_bytes",
    ),
    Column(
        name="forgetting",
        title="forgetting",
        kind="number",
        pick=lambda record: (record.training.get("forgetting") or {}).get("change"),
        direction="lower",
    ),
    Column(name="train_samples", title="train samples", kind="count", pick=lambda record: _samples(record)),
    Column(
        name="train_tokens",
        title="train tokens",
        kind="count",
        pick=lambda record: record.cost.train_tokens,
        why="train_tokens",
    ),
    Column(name="steps", title="steps", kind="count", pick=lambda record: record.training.get("last_step")),
    Column(name="created_at", title="created", kind="time", pick=lambda record: record.created_at),
    Column(name="status", title="status", kind="text", pick=lambda record: record.status),
    Column(name="category", title="category", kind="text", pick=lambda record: record.category),
    Column(name="key", title="key", kind="text", pick=lambda record: record.key),
    Column(name="arm", title="arm", kind="text", pick=lambda record: record.arm),
    Column(name="shared_machine", title="shared machine", kind="text", pick=lambda record: record.cost.shared_machine),
)
BY_NAME: Mapping[str, Column] = {column.name: column for column in COLUMNS}


def _samples(record: Record) -> int | None:
    """Rows that went through the model in training, repeats counted: the position in the data, in rows."""
    counted = record.training.get("samples")
    epochs, rows = record.training.get("epochs"), record.rows.get("num_rows")
    if counted is None and epochs is not None and rows is not None:
        counted = round(epochs * rows)
    return None if counted is None else int(counted)


def reason(record: Record, name: str) -> str:
    """Why a column of this record is None."""
    if name == "forgetting":
        found = record.training.get("forgetting") or {}
        return str(found.get("reason") or record.training.get("forgetting_unavailable") or NOT_RECORDED)
    why = BY_NAME[name].why
    otherwise = NO_LEVEL if why == "memory_bytes" and record.cost.memory_bytes else NOT_RECORDED
    return record.cost.unknown.get(why) or record.cost.unknown.get(name) or otherwise


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config with dotted keys; lists and empty objects stay whole.

    Example:
        >>> flat({"optim": {"learning_rate": 0.1}, "seed": 0})
        {'optim.learning_rate': 0.1, 'seed': 0}
    """
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result


def values(record: Record, task: str | None = None) -> dict[str, Any]:
    """Every column of a record by its name.

    Besides `COLUMNS`: settings (`optim.learning_rate`, `adapter.r`), and the mean of each metric, of the kept weights
    on the test rows under its own name (`exact_match`), on the validation rows (`valid.exact_match`), of the starting
    model (`base.exact_match`), and of any task scored (`other_task.exact_match`). Where two names meet, a column of
    `COLUMNS` stands before a setting, and a setting before a metric.

    Args:
        record: The run.
        task: Whose metrics have no task in their name. None: those of the task trained on, or of the first one scored.
    """
    settings = {name: value for name, value in record.spec.items() if isinstance(value, Mapping) and name != "task"}
    return {
        **_metrics(record, task),
        **flat(settings),
        **{column.name: column.pick(record) for column in COLUMNS},
    }


def _metrics(record: Record, task: str | None) -> dict[str, float]:
    scored = final(record, "test")
    tested = {evaluation.task: evaluation for evaluation in scored}
    wanted = task or (record.task if record.task in tested else next(iter(tested), record.task))
    found: dict[str, float] = {}
    for evaluation in scored:
        found.update(_means(evaluation, f"{evaluation.task}."))
    for evaluation in final(record, "valid"):
        if evaluation.task == wanted:
            found.update(_means(evaluation, "valid."))
    for evaluation in record.evaluations:
        if (evaluation.what, evaluation.task, evaluation.part, evaluation.role) == ("task", wanted, "test", "base"):
            found.update(_means(evaluation, "base."))
    if wanted in tested:
        found.update(_means(tested[wanted], ""))
    return found


def _means(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    return {f"{prefix}{name}": metric.mean for name, metric in evaluation.metrics.items()}


def mean(found: Iterable[float | None]) -> float | None:
    """Over the seeds of an arm; None when one of them is not known, as in the costs of a comparison."""
    numbers: Sequence[float | None] = list(found)
    known = [value for value in numbers if value is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None
