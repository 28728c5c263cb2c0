"""Bucket, pad and order rows; the position in the order can be saved and restored.

The order is a pure function of (rows, settings, seed, epoch), so a position is two numbers. Knows no model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from peftlab import seeds
from peftlab.config.groups import BatchSettings, TrainSettings
from peftlab.rows.tokenise import TokenRow

IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Padded tensors of one forward pass.

    Attributes:
        input_ids: [rows, positions], padded on the right (padding is marked by the mask, never by an id).
        attention_mask: [rows, positions], 1 on real tokens.
        labels: [rows, positions], IGNORE where no loss is taken; None for classification.
        weights: [rows, positions] loss weights, or None when all are 1.
        first_label: Smallest label position over the rows, at least 1 (position 0 has nothing before it).
        classes: [rows] class numbers, or (float32) the values of a regression; None for texts.
        type_ids: [rows, positions] segment ids of pair encoders, or None.
        num_tokens: Real tokens.
        items: Item ids of the rows, in order.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor | None
    weights: torch.Tensor | None
    first_label: int
    classes: torch.Tensor | None
    type_ids: torch.Tensor | None
    num_tokens: int
    items: tuple[str, ...]

    @property
    def keep(self) -> int:
        """Number of final logit positions that the loss reads."""
        return self.input_ids.shape[1] - self.first_label + 1

    @property
    def weight(self) -> float:
        """What the summed loss is divided by: label tokens (rows, for classification), each at its weight."""
        if self.labels is None:
            return len(self.items)
        mask = self.labels[:, self.first_label :] != IGNORE
        return float(mask.sum() if self.weights is None else self.weights[:, self.first_label :][mask].sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return dataclasses.replace(self, **moved)


def collate(rows: Sequence[TokenRow], *, pad_id: int, eos_weight: float = 1.0) -> Batch:
    """Pad rows on the right to the longest and mask their labels."""
    length = max(len(row.ids) for row in rows)
    input_ids = torch.full((len(rows), length), pad_id)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
    classify = rows[0].label is not None
    labels = None if classify else torch.full((len(rows), length), IGNORE)
    weights = torch.ones((len(rows), length)) if eos_weight != 1.0 and not classify else None
    type_ids = torch.zeros((len(rows), length), dtype=torch.long) if rows[0].type_ids is not None else None
    for index, row in enumerate(rows):
        size = len(row.ids)
        ids = torch.tensor(row.ids)
        input_ids[index, :size] = ids
        attention_mask[index, :size] = 1
        if labels is not None:
            for start, stop in row.learnt:
                labels[index, start:stop] = ids[start:stop]
            labels[index, 0] = IGNORE
        if weights is not None:
            for _, stop in row.learnt if row.has_eos else row.learnt[:-1]:
                weights[index, stop - 1] = eos_weight
        if type_ids is not None and row.type_ids is not None:
            type_ids[index, :size] = torch.tensor(row.type_ids)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        weights=weights,
        first_label=min(max(1, min(row.labels_from for row in rows)), length),
        classes=_answers([row.label for row in rows if row.label is not None]) if classify else None,
        type_ids=type_ids,
        num_tokens=sum(len(row.ids) for row in rows),
        items=tuple(row.item for row in rows),
    )


def _answers(labels: Sequence[int | float]) -> torch.Tensor:
    """Class numbers as integers, values as float32."""
    return torch.tensor(labels, dtype=torch.float32 if isinstance(labels[0], float) else torch.long)


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """The rows of one optimizer step, cut into the forward passes of this process.

    Attributes:
        micro_batches: The rows of each forward pass; empty for a process that the tail of a pass left without.
        epoch: Passes over the rows after this step.
        ends_epoch: Whether a pass ends with this step.
        most: Forward passes of the process that has most.
        filler: A row of this step, for whoever must run a forward pass without having rows.
    """

    micro_batches: tuple[tuple[TokenRow, ...], ...]
    epoch: float
    ends_epoch: bool
    most: int
    filler: TokenRow


def order(lengths: Sequence[int], settings: BatchSettings, rows_per_step: int, seed: int, epoch: int) -> list[int]:
    """Row numbers in the order of one epoch: each exactly once.

    `bucketed`: after a seeded shuffle, consecutive slices of `bucket_batches` steps are sorted longest first (a
    stable sort). Memory trouble then shows early, and padding stays small. The bucket counts rows of whole steps, so
    that accumulation and processes do not change which rows make a step. `bucketed-file`: the same without the
    shuffle, so that every epoch and every seed sees one order.
    """
    if settings.order in ("file", "bucketed-file"):
        rows: Sequence[int] = range(len(lengths))
    else:
        rows = seeds.ranked(len(lengths), seed, "order", epoch)
    if settings.order in ("file", "shuffled"):
        return list(rows)
    size = settings.bucket_batches * rows_per_step
    buckets = (rows[start : start + size] for start in range(0, len(rows), size))
    return [row for bucket in buckets for row in sorted(bucket, key=lambda row: -lengths[row])]


def total_steps(
    rows: Sequence[TokenRow], settings: BatchSettings, train: TrainSettings, *, world_size: int = 1, seed: int = 0
) -> int:
    """Optimizer steps that a budget comes to.

    Passes over the rows and rows are counted exactly; a token budget ends with the step that reaches it. The tail of
    a pass is a step of its own.
    """
    counted = counted_steps(len(rows), settings, train, world_size=world_size)
    if counted is not None:
        return counted
    assert train.max_train_tokens is not None
    stream = Stream(rows, settings, seed, world_size=world_size)
    seen = steps = 0
    while seen < train.max_train_tokens:
        seen += sum(len(row.ids) for row in stream.take())
        steps += 1
    return steps


def counted_steps(num_rows: int, settings: BatchSettings, train: TrainSettings, *, world_size: int = 1) -> int | None:
    """The same where the number of rows is enough to know it; None for a budget of tokens."""
    if train.max_steps is not None or train.max_train_tokens is not None:
        return train.max_steps
    per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * world_size
    samples = train.max_train_samples or (train.num_train_epochs or 0) * num_rows
    passes = int(samples // num_rows)
    rest = math.ceil(samples - passes * num_rows - 1e-9)
    return passes * math.ceil(num_rows / per_step) + math.ceil(rest / per_step)


class Stream:
    """An endless series of steps over the rows: epoch after epoch, the tail of each included.

    With several processes every rank walks the same order and takes its share of each step's micro-batches.
    """

    def __init__(
        self, rows: Sequence[TokenRow], settings: BatchSettings, seed: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        if not rows:
            raise ValueError("a stream needs rows")
        self.rows = rows
        self.settings = settings
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.taken = 0
        self._order: list[int] | None = None

    @property
    def rows_per_step(self) -> int:
        """Rows per optimizer step, over all processes."""
        per_process = self.settings.per_device_train_batch_size * self.settings.gradient_accumulation_steps
        return per_process * self.world_size

    def state(self) -> dict[str, int]:
        """The position: whole epochs done, and rows taken of the current one."""
        return {"epoch": self.epoch, "taken": self.taken}

    def restore(self, state: dict[str, int]) -> None:
        """Go to a position from `state`."""
        self.epoch, self.taken = state["epoch"], state["taken"]
        self._order = None

    def __iter__(self) -> Iterator[StepRows]:
        return self

    def take(self) -> list[TokenRow]:
        """The next step's rows, of all processes; the position already points behind them."""
        if self._order is None:
            lengths = [len(row.ids) for row in self.rows]
            self._order = order(lengths, self.settings, self.rows_per_step, self.seed, self.epoch)
        chosen = [self.rows[index] for index in self._order[self.taken : self.taken + self.rows_per_step]]
        self.taken += len(chosen)
        if self.taken >= len(self.rows):
            self.epoch, self.taken, self._order = self.epoch + 1, 0, None
        return chosen

    def __next__(self) -> StepRows:
        """The next step's rows, cut for this process."""
        chosen = self.take()
        epoch = self.epoch + self.taken / len(self.rows)
        size = self.settings.per_device_train_batch_size
        micro = [tuple(chosen[start : start + size]) for start in range(0, len(chosen), size)]
        return StepRows(
            micro_batches=tuple(micro[self.rank :: self.world_size]),
            epoch=epoch,
            ends_epoch=self.taken == 0,
            most=math.ceil(len(micro) / self.world_size),
            filler=chosen[0],
        )
