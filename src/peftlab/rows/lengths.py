"""What training rows come to as tokens: lengths, how many are cut, what the loss is on, what padding costs.

Numbers only, for a person who looks before training; nothing here is part of a run. Drawing them is `cli/showing.py`'s
work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftlab.config.groups import BatchSettings
from peftlab.config.spec import RunSpec
from peftlab.protocols import Example
from peftlab.rows import conversations, tokenise, training_rows
from peftlab.rows.batching import Stream
from peftlab.rows.tokenise import TokenRow

ORDERS = ("bucketed", "shuffled", "file")
AT_MOST = 20_000
"""Rows that are looked at unless all are asked for: some seconds on one core."""

_CHUNK = 1000
_MOST_BINS = 12
_UNLIMITED = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Training rows as tokens.

    Attributes:
        rows: As they are trained on, cut at the limit.
        lengths: Tokens of each before the cut.
        available: Training rows there are; more than `rows` when only some were looked at.
        turns: Of conversations: who wrote them, and counts (`conversations.token_rows`); else empty.
    """

    rows: Sequence[TokenRow]
    lengths: Sequence[int]
    available: int
    turns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Rows of `low` to `high` tokens, both included."""

    low: int
    high: int
    rows: int


def tokens(
    examples: Sequence[Example],
    tokenizer: Any,
    spec: RunSpec,
    *,
    kind: str,
    at_most: int | None = AT_MOST,
    tell: Callable[[int], None] = lambda done: None,
) -> Tokens:
    """Tokenise training rows as a run does, and remember how long each was before the cut.

    Args:
        examples: All training rows.
        tokenizer: The experiment's.
        spec: Limit and loss mask.
        kind: `classify` or what `tokenise.tokenise` takes else.
        at_most: Look at so many rows, evenly spaced over all of them; None: at all.
        tell: Called with the number of rows done, now and then.

    Raises:
        UserError: Not one row has a token to learn from.
    """
    step = 1 if at_most is None else max(1.0, len(examples) / at_most)
    chosen = [examples[int(number * step)] for number in range(math.ceil(len(examples) / step))]
    limit = spec.data.max_length
    turns: dict[str, Any] = {}
    how = spec.data.chat_template
    in_turns = training_rows.in_turns(spec.task, how)
    if in_turns:
        turns["written_by"] = conversations.writing_of(tokenizer, spec.task, how).by

    def made(part: Sequence[Example], at_most: int) -> list[TokenRow]:
        mask = spec.data.loss_mask
        if spec.task.kind != "text" and not in_turns:
            between = spec.data.pair_separator
            return tokenise.tokenise(
                part, tokenizer, kind=kind, max_length=at_most, loss_mask=mask, pair_separator=between
            )[0]
        found, facts = training_rows.make(
            part, tokenizer, spec.task, max_length=at_most, loss_mask=mask, chat_template=how
        )
        for name in (*conversations.COUNTED, "boundary_rows") if in_turns else ():
            turns[name] = turns.get(name, 0) + facts[name]
        return found

    if spec.task.in_windows:  # nothing is cut off windows, and those of a joined text are known together
        rows = made(chosen, limit)
        tell(len(chosen))
        return Tokens(rows=rows, lengths=[len(row.ids) for row in rows], available=len(rows))
    rows = []
    lengths: list[int] = []
    for start in range(0, len(chosen), _CHUNK):
        part = chosen[start : start + _CHUNK]
        whole = made(part, _UNLIMITED)
        lengths += [len(row.ids) for row in whole]
        if kind == "classify":  # here the tokenizer itself decides what a long row loses
            whole = made(part, limit)
        rows += [tokenise.cut(row, limit) for row in whole]
        tell(len(rows))
    if kind != "classify" and not any(row.num_labels for row in rows):
        made(chosen, limit)  # says what is wrong
    return Tokens(rows=rows, lengths=lengths, available=len(examples), turns=turns)


def summary(found: Tokens) -> dict[str, Any]:
    """Counts, quantiles (nearest rank) and shares; what cannot be said of a classification is None."""
    ordered = sorted(found.lengths)
    total = sum(len(row.ids) for row in found.rows)
    classes = found.rows[0].label is not None
    labels = [row.num_labels for row in found.rows]
    truncated = sum(row.truncated for row in found.rows)
    return {
        "rows": len(found.rows),
        "available": found.available,
        "shortest": ordered[0],
        "mean": sum(ordered) / len(ordered),
        "median": quantile(ordered, 0.5),
        "p95": quantile(ordered, 0.95),
        "p99": quantile(ordered, 0.99),
        "longest": ordered[-1],
        "truncated": truncated,
        "truncated_share": truncated / len(found.rows),
        "tokens": total,
        "label_tokens": None if classes else sum(labels),
        "label_share": None if classes else sum(labels) / total,
        "rows_without_labels": None if classes else labels.count(0),
    }


def quantile(ordered: Sequence[int], share: float) -> int:
    """The smallest value that at least this share of the sorted values does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def histogram(lengths: Sequence[int]) -> list[Bin]:
    """Rows by length, in at most twelve bins of one width out of 1, 2, 5, 10, 20, ...; empty ones between included."""
    low, high = min(lengths), max(lengths)
    width = next(width for width in _widths() if high // width - low // width < _MOST_BINS)
    counts = dict.fromkeys(range(low // width, high // width + 1), 0)
    for length in lengths:
        counts[length // width] += 1
    return [Bin(low=place * width, high=place * width + width - 1, rows=rows) for place, rows in counts.items()]


def _widths() -> Any:
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10


def padding(rows: Sequence[TokenRow], batch: BatchSettings, *, seed: int, num_processes: int) -> Mapping[str, float]:
    """For each order of rows the share of padding in the positions that its first pass computes."""
    orders = dict.fromkeys((*ORDERS, batch.order))
    return {order: _padding(rows, batch, order, seed, num_processes) for order in orders}


def _padding(rows: Sequence[TokenRow], batch: BatchSettings, order: str, seed: int, num_processes: int) -> float:
    settings = batch.model_copy(update={"order": order})
    positions = 0
    for rank in range(num_processes):
        stream = Stream(rows, settings, seed, rank=rank, world_size=num_processes)
        for _ in range(math.ceil(len(rows) / stream.rows_per_step)):
            for micro in next(stream).micro_batches:
                positions += len(micro) * max(len(row.ids) for row in micro)
    return 1 - sum(len(row.ids) for row in rows) / positions
