"""The rows that a start reads before training: which, how many, how long; as inputs of the model's forward.

They come from the training or validation rows of the task, or from a general text; never from its test. Starts nothing.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from peftlab import seeds
from peftlab.config.groups import CalibrationSettings
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.protocols import Example, Start
from peftlab.rows import texts, training_rows
from peftlab.rows.batching import collate
from peftlab.rows.data import Rows
from peftlab.rows.tokenise import TokenRow

_PARTS = ("train", "valid")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The rows as tokens; their digest as batches; and what the record says of them."""

    rows: tuple[TokenRow, ...]
    batch_size: int
    digest: str
    facts: Mapping[str, Any]


class Batches(Sequence[Mapping[str, Any]]):
    """Inputs of the model's forward with `labels`, made when they are asked for."""

    def __init__(self, chosen: Chosen, *, pad_id: int, device: torch.device) -> None:
        self._chosen, self._pad_id, self._device = chosen, pad_id, device

    def __len__(self) -> int:
        return -(-len(self._chosen.rows) // self._chosen.batch_size)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        size = self._chosen.batch_size
        batch = collate(self._chosen.rows[index * size : (index + 1) * size], pad_id=self._pad_id).to(self._device)
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.type_ids is not None:
            inputs["token_type_ids"] = batch.type_ids
        return {**inputs, "labels": batch.classes if batch.classes is not None else batch.labels}


def check(spec: RunSpec, start: Start, rows: Rows) -> None:
    """See that there are enough rows, before anything is loaded.

    Raises:
        UserError: There are not, or no such source.
    """
    settings = spec.calibration
    if settings.source in _PARTS:
        if not spec.task.in_windows:  # how many windows it comes to, only its tokens say
            _enough(settings, start, len(getattr(rows, settings.source)))
        return
    text = texts.for_forgetting(settings.source) if _is_text(settings.source) else None
    if not isinstance(text, tuple):
        raise UserError(
            f"calibration.source = {settings.source}: {text or 'there is no such part or text'}",
            fix=f"use {', '.join([*_PARTS, *texts.available()])}",
        )
    if spec.task.has_head and start.needs_labels:
        raise UserError(
            f"calibration.source = {settings.source}: this start reads classes, which a text has none of",
            fix="set calibration.source=train",
        )


def choose(spec: RunSpec, start: Start, rows: Rows, tokenizer: Any) -> Chosen:
    """The rows that the settings ask for, or else those that the start's own paper used.

    Raises:
        UserError: There are too few.
    """
    settings = spec.calibration
    limit = settings.max_tokens or spec.data.max_length
    if settings.source in _PARTS:
        available = _tokens(getattr(rows, settings.source), spec, start, tokenizer, limit)
    else:
        available = _windows(settings.source, tokenizer, limit)
    positions = list(range(len(available)))
    wanted = _enough(settings, start, len(available), usable=True)
    if settings.selection == "random":
        positions = seeds.ranked(len(available), spec.data.data_seed, "rows", "calibration")
    chosen = tuple(available[position] for position in sorted(positions[:wanted]))
    found = _digest(chosen)
    size = settings.batch_size or start.batch_size
    facts = {
        "source": settings.source,
        "rows": len(chosen),
        "tokens": sum(len(row.ids) for row in chosen),
        "truncated": sum(row.truncated for row in chosen),
        "fingerprint": found,
    }
    # a mean over batches, or components of them, are others where the same rows are divided otherwise
    return Chosen(rows=chosen, batch_size=size, digest=f"{found}-{size}", facts=facts)


def _is_text(source: str) -> bool:
    return source.removeprefix(texts.FROM_HUB) in texts.available()


def _enough(settings: CalibrationSettings, start: Start, available: int, *, usable: bool = False) -> int:
    wanted = settings.rows or start.rows or available
    if available < wanted or available == 0:
        kind = "usable rows" if usable else "rows"
        default = "" if settings.rows else " (what its paper took)"
        raise UserError(
            f"calibration.rows: the start reads {wanted or 'its'} rows{default}, and "
            f"{settings.source} has {available} {kind}",
            fix=f"set calibration.rows={available} or less" if available else "name another calibration.source",
        )
    return wanted


def _tokens(examples: Sequence[Example], spec: RunSpec, start: Start, tokenizer: Any, limit: int) -> list[TokenRow]:
    """Rows of a part, without those that lost all of their answer where the start reads a loss."""
    found, _ = training_rows.make(
        examples,
        tokenizer,
        spec.task,
        max_length=limit,
        loss_mask=spec.data.loss_mask,
        chat_template=spec.data.chat_template,
        pair_separator=spec.data.pair_separator,
    )
    return [row for row in found if spec.task.has_head or not start.needs_labels or row.num_labels > 0]


def _windows(source: str, tokenizer: Any, limit: int) -> list[TokenRow]:
    """A text as whole windows of so many tokens, each token of it in one window; what is left over is left out."""
    written = texts.for_forgetting(source)
    assert isinstance(written, tuple), "checked before"
    ids = [one for text in written[0] for one in tokenizer(text, add_special_tokens=False)["input_ids"]]
    return [
        TokenRow(f"{source}-{start}", tuple(ids[start : start + limit]), 0, False, False)
        for start in range(0, len(ids) - limit + 1, limit)
    ]


def _digest(rows: Sequence[TokenRow]) -> str:
    whole = hashlib.sha256()
    for row in rows:
        whole.update(array("q", [len(row.ids), row.labels_from, *row.ids]).tobytes())
        whole.update(f"{row.label}/{row.type_ids}".encode())
        if row.spans is not None:
            whole.update(f"/{row.spans}".encode())
    return whole.hexdigest()[:16]
