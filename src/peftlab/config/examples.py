"""A task's rows to Examples: columns picked, prompts rendered, references checked. Reads no data set."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from peftlab.config import turns
from peftlab.config.source import Row
from peftlab.config.task import TASK_FOLDER, Task
from peftlab.config.templates import fill, template_fields
from peftlab.digest import digest
from peftlab.errors import UserError, nearest
from peftlab.protocols import Example

_LONGEST_CLUSTER_ID = 64


@cache
def _converter(name: str) -> Callable[[Row], Row]:
    spec = importlib.util.spec_from_file_location(f"peftlab.tasks.{name}", TASK_FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    converter: Callable[[Row], Row] = module.convert
    return converter


def examples(task: Task, rows: Sequence[Row]) -> list[Example]:
    """Turn raw rows into Examples, in order. An item's id is the hash of its task columns.

    Raises:
        UserError: A column that the data has not.
    """
    convert = _converter(task.name) if task.convert else None
    result = []
    for row in rows:
        converted = convert(row) if convert else row
        values = {name: _pick(task, converted, names) for name, names in task.columns.items()}
        result.append(_example(task, values, _cluster(task, converted)))
    return result


def within(task: Task, rows: Sequence[Row], limit: int) -> list[bool]:
    """Which raw rows have at most `limit` characters: the task's columns as text, joined by one space each.

    Of a conversation it is what was said, one turn a line.
    """
    convert = _converter(task.name) if task.convert else None
    lengths = []
    for row in rows:
        converted = convert(row) if convert else row
        texts = [_as_text(task, name, _pick(task, converted, names)) for name, names in task.columns.items()]
        lengths.append(sum(len(text) + 1 for text in texts) - 1)
    return [length <= limit for length in lengths]


def _as_text(task: Task, name: str, value: Any) -> str:
    return turns.as_text(value) if name == task.messages else str(value)


def _pick(task: Task, row: Row, names: str | tuple[str, ...], where: str = "columns") -> Any:
    for name in (names,) if isinstance(names, str) else names:
        if name in row:
            return row[name]
    wanted = (names,) if isinstance(names, str) else names
    guess = next((found for name in wanted if (found := nearest(name, row))), None)
    raise UserError(
        f"task '{task.name}': the data has no column {names!r}; it has {sorted(row)}",
        fix=f"did you mean '{guess}'? mend '{where}' in the task" if guess else f"mend '{where}' in the task",
    )


def _cluster(task: Task, row: Row) -> str | None:
    """The value that the row shares with others of its source; a passage is named by its digest."""
    value = None if task.cluster is None else _pick(task, row, task.cluster, "cluster")
    if value is None:
        return None
    text = str(value)
    return text if len(text) <= _LONGEST_CLUSTER_ID else digest(text)


def _example(task: Task, values: dict[str, Any], cluster: str | None) -> Example:
    plain = {name: value for name, value in values.items() if not isinstance(value, (list, tuple))}
    for name in {*template_fields(task.prompt), *template_fields(task.target), *task.pair} & set(values):
        if values[name] is None or name not in plain:
            raise UserError(
                f"task '{task.name}': column '{name}' of a row is {str(values[name])[:100]}, not text",
                fix="mend the data, or use another column",
            )
    choices = tuple(str(choice) for choice in values[task.choices]) if task.choices else ()
    reference: Any = None if task.kind == "text" else values[task.reference]
    target_values = dict(plain)
    if task.choices or task.labels:
        reference = _index(task, reference, choices if task.choices else task.labels)
    if task.kind == "regress":
        reference = _number(task, reference)
    if task.choices:
        target_values["choice"] = choices[reference]
    try:
        item = digest(values)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"task '{task.name}': a row is no plain data ({error}): {str(values)[:200]}", fix="mend the row"
        ) from None
    said: turns.Conversation = ()
    if task.messages:
        where = f"task '{task.name}': row {item[:12]} ({turns.beginning(values[task.messages])!r})"
        said = turns.conversation(values[task.messages], where=where)
    return Example(
        item=item,
        messages=said,
        prompt=fill(task.prompt, target_values if task.names_choice else plain),
        target=fill(task.target, target_values) if task.target else "",
        reference=reference,
        choices=tuple(fill(task.target, {**plain, "choice": choice}) for choice in choices),
        contexts=tuple(fill(task.prompt, {**plain, "choice": choice}) for choice in choices if task.names_choice),
        pair=tuple(str(values[name]) for name in task.pair),
        cluster=cluster,
        columns={name: _as_text(task, name, value) for name, value in values.items()},
    )


def _index(task: Task, reference: Any, names: Sequence[str]) -> int:
    """The reference as an index into choices or labels; a label's name counts as its number."""
    if reference in task.labels:
        return task.labels.index(reference)
    if isinstance(reference, str) and reference.isdecimal() and reference.isascii():
        reference = int(reference)  # CSV knows only text
    if isinstance(reference, bool) or not isinstance(reference, int) or not 0 <= reference < len(names):
        what = "labels" if task.labels else "choices"
        raise UserError(
            f"task '{task.name}': '{task.reference}' = {reference!r} is no index into the {len(names)} {what}",
            fix=f"mend 'reference' or '{what}' in the task; rows without a public answer cannot be used",
        )
    return reference


def _number(task: Task, reference: Any) -> float:
    """The reference as a number; text that spells one counts, since CSV knows only text."""
    try:
        value = float(reference) if isinstance(reference, (int, float, str)) else math.nan
    except ValueError:
        value = math.nan
    if isinstance(reference, bool) or not math.isfinite(value):
        raise UserError(
            f"task '{task.name}': '{task.reference}' = {reference!r} is no finite number",
            fix="mend 'reference' in the task; rows without a public answer cannot be used",
        )
    return value


def with_shots(task: Task, example: Example, shots: Sequence[Example]) -> str:
    """The example's prompt with worked examples before it, joined by the task's separator."""
    worked = [shot.prompt + shot.target for shot in shots]
    return task.separator.join([*worked, example.prompt])
