"""The named columns of a run: what a table shows of it, a plot sets against another, and a filter asks for.

Picks numbers out of records; computes no statistics. A number that a record does not have is None, and `reason` says
why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peftlab.records.record import Evaluation, Record
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


def _cost(name: str, title: str, kind: Kind, pick: Callable[[Record], Any], why: str = "") -> Column:
    """A number of which less is better."""
    return Column(name=name, title=title, kind=kind, pick=pick, direction="lower", why=why)


def _memory(name: str, title: str, statistic: str) -> Column:
    return _cost(
        name, f"memory added, {title}", "bytes", lambda record: record.cost.added_bytes(statistic), "memory_bytes"
    )


def _parameters(name: str, title: str, counted: str) -> Column:
    return _cost(name, title, "count", lambda record: getattr(record.cost, counted), counted)


def _seconds(record: Record) -> float | None:
    return sum(record.cost.seconds.values()) if record.cost.seconds else None


COLUMNS = (
    Column(name="experiment", title="experiment", kind="text", pick=lambda record: record.experiment),
    Column(name="method", title="method", kind="text", pick=lambda record: record.method),
    Column(name="model", title="model", kind="text", pick=lambda record: (record.spec.get("model") or {}).get("id")),
    Column(name="task", title="trained on", kind="text", pick=lambda record: record.task),
    Column(name="seed", title="seed", kind="count", pick=lambda record: record.seed),
    _cost("total_seconds", "total time", "seconds", _seconds, "total"),
    _cost("train_seconds", "train time", "seconds", lambda record: record.cost.seconds.get("train"), "train"),
    _cost("train_loss", "train loss, last step", "number", lambda record: record.training.get("final_loss")),
    _memory("memory_max", "maximum", "maximum"),
    _memory("memory_99th", "99th percentile", "percentile_99"),
    _memory("memory_avg", "average", "average"),
    _parameters("trainable_parameters", "trainable parameters", "num_trainable_parameters"),
    _parameters("total_parameters", "all parameters", "num_parameters"),
    _cost("adapter_bytes", "file size", "bytes", lambda record: record.cost.adapter_bytes, "adapter_bytes"),
    _cost("forgetting", "forgetting", "number", lambda record: (record.training.get("forgetting") or {}).get("change")),
    Column(
        name="retention",
        title="general suite, change",
        kind="number",
        pick=lambda record: (record.training.get("retention") or {}).get("change"),
        direction="higher",
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
    if name in ("forgetting", "retention"):
        found = record.training.get(name) or {}
        return str(found.get("reason") or record.training.get(f"{name}_unavailable") or NOT_RECORDED)
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


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config with dotted keys, without what has no value; lists as JSON text.

    Example:
        >>> settings({"adapter": {"r": 4, "target_modules": ["q", "v"], "layers": None}})
        {'adapter.r': 4, 'adapter.target_modules': '["q", "v"]'}
    """
    given = {name: value for name, value in flat(config).items() if value is not None and value not in ("", [], {})}
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in given.items()}


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
    return {
        **_metrics(record, task),
        **flat(groups(record)),
        **{column.name: column.pick(record) for column in COLUMNS},
    }


def groups(record: Record) -> dict[str, Any]:
    """The groups of settings of a run, and its adapter's config."""
    return {name: value for name, value in record.spec.items() if isinstance(value, Mapping) and name != "task"}


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
