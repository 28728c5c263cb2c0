"""The versioned result of a run, its JSON form, and migrations of older versions.

A record is self-describing: metrics carry their direction, unknown numbers are null with a reason. NaN and infinity
are results too (a diverged loss), so the JSON writes them as `{"$float": "nan"}` and reads them back exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from peftlab.errors import UserError

VERSION = 1
Status = Literal["finished", "failed", "out_of_memory", "cancelled", "killed"]
Category = Literal["main", "test"]


class Part(BaseModel):
    """A section of a record."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)


class Metric(Part):
    """A mean over items. `standard_error` is of the mean over items of this one run; null when it has none.

    `n` is null where a result from elsewhere does not say it.
    """

    mean: float
    standard_error: float | None
    n: int | None
    direction: Literal["higher", "lower"]


class Evaluation(Part):
    """One evaluation: of a task's rows (`task`), of a benchmark's sample of them (`sample`), of general text (`text`).

    Attributes:
        key: The evaluation key.
        checkpoint: Step whose weights were scored, or `base` for the starting model.
        role: `last`, `best`, `step` or `base`: why these weights.
        metrics: The first is primary.
        folder: Where samples and outcomes lie: relative to the payload, or `base/...` relative to the results folder.
        items: Digest of the list of item ids, in order; two evaluations with equal digests are paired.
        num_items: How many; null where a result from elsewhere does not say it.
        grader: name, version, modes.
        settings: What it was made under; of a sample also the `benchmark` whose it is.
        baselines: Scores that need no model (majority class), by name.
        partial: Whether the rows are only a part of the data set they are named after.
    """

    key: str
    what: Literal["task", "text", "sample"]
    task: str
    part: str
    checkpoint: int | Literal["base"]
    role: Literal["base", "last", "best", "step"]
    metrics: dict[str, Metric]
    folder: str | None = None
    items: str | None = None
    num_items: int | None
    grader: dict[str, Any] | None = None
    baselines: dict[str, float] = {}
    settings: dict[str, Any] = {}
    partial: bool = False
    seconds: float | None = None
    num_tokens: int | None = None
    notes: dict[str, Any] = {}


class Cost(Part):
    """Times in seconds, added up over resumed parts; memory and sizes in bytes; null with a reason in `unknown`."""

    seconds: dict[str, float] = {}
    num_parts: int = 1
    train_tokens: int | None = None
    label_tokens: int | None = None
    memory_bytes: dict[str, float] | None = None
    memory_kind: str | None = None
    num_trainable_parameters: int | None = None
    num_parameters: int | None = None
    adapter_bytes: int | None = None
    shared_machine: bool = False
    unknown: dict[str, str] = {}

    def added_bytes(self, name: str) -> float | None:
        """Memory above the level before the model was loaded; None where either is not known."""
        memory = self.memory_bytes or {}
        value, level = memory.get(name), memory.get("before_model")
        return None if value is None or level is None else value - level


class Record(Part):
    """What is known about one run.

    Attributes:
        identity: What the key hashes.
        spec: The whole resolved config, defaults written out.
        curve: Columns of at most some hundred points (`step`, `loss`, `learning_rate`, ...); the whole curve lies in
            `<stem>/curve.jsonl`.
        before_reason: Why no evaluation has `checkpoint: base` (a new head, a random start); null when one has.
        rows: Counts and fingerprints of the rows, truncation, overlap.
        provenance: What it was made with; `imported_from` names the dialect of a result that was made elsewhere.
    """

    version: Literal[1] = 1
    status: Status
    category: Category
    key: str
    arm: str
    experiment: str
    method: str
    task: str
    seed: int
    aliases: tuple[str, ...] = ()
    created_at: str
    identity: dict[str, Any]
    spec: dict[str, Any]
    evaluations: tuple[Evaluation, ...] = ()
    before_reason: str | None = None
    curve: dict[str, list[Any]] = {}
    rows: dict[str, Any] = {}
    training: dict[str, Any] = {}
    cost: Cost = Cost()
    provenance: dict[str, Any] = {}
    error: str | None = None

    @property
    def imported_from(self) -> str | None:
        """The dialect of a result that was made elsewhere: it has scores only, nothing to pair or to go on from."""
        return self.provenance.get("imported_from")

    @property
    def stem(self) -> str:
        """Name of the record's file and folder."""
        return f"{self.experiment.replace('/', '--')}--{self.task}--seed{self.seed}--{self.key[:12]}"

    def evaluation(self, role: str, *, what: str = "task", part: str = "test") -> Evaluation | None:
        """The latest evaluation of that role, or None."""
        found = [e for e in self.evaluations if (e.role, e.what, e.part) == (role, what, part)]
        return found[-1] if found else None


def dumps(value: Any, *, indent: int | None = 1) -> str:
    """The one JSON writer for results: NaN and infinity survive a round trip."""
    return json.dumps(_encode(value), indent=indent, ensure_ascii=True, allow_nan=False)


def loads(text: str) -> Any:
    """Read what `dumps` wrote.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        return json.loads(text, object_hook=_decode)
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    return value


def _decode(value: dict[str, Any]) -> Any:
    return float(value["$float"]) if len(value) == 1 and "$float" in value else value


def to_json(record: Record) -> str:
    """A record as JSON text."""
    return dumps(record.model_dump(mode="python"))


def from_json(text: str, *, where: str) -> Record:
    """A record from JSON text, older versions migrated.

    Raises:
        UserError: Not a record, or written by a newer peftlab.
    """
    try:
        data = loads(text)
        version = data["version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{where} is not a readable record", fix="move it away; its run can be repeated") from None
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{where} has record version {version!r}", fix="move it away; its run can be repeated")
    if version > VERSION:
        raise UserError(
            f"{where} has record version {version}; this peftlab reads up to {VERSION}", fix="upgrade peftlab"
        )
    for old in range(version, VERSION):
        data = MIGRATIONS[old](data)
    try:
        return Record.model_validate(data)
    except ValueError as error:
        first = str(error).splitlines()[1:3]
        raise UserError(f"{where} is not a valid record: {' '.join(first)}", fix="move it away and run again") from None


MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""version -> function that turns a record of that version into one of the next."""
