"""Plain text: how well a model predicts its tokens, all of them together; never counts padding.

`score_texts` is for tasks of plain text, `text_loss` for the general text on which forgetting is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from peftlab.config.groups import BatchSettings
from peftlab.config.spec import TEXT_WINDOW_TOKENS, TEXT_WINDOWS, RunSpec
from peftlab.digest import digest
from peftlab.errors import UserError
from peftlab.events import Progress
from peftlab.loop import loss
from peftlab.modelling.models import Built
from peftlab.parallel import processes
from peftlab.protocols import Example
from peftlab.rows import conversations, windows
from peftlab.rows.batching import Batch
from peftlab.rows.tokenise import TokenRow
from peftlab.scores.grading import Scored, clusters_note, mean
from peftlab.scores.passes import Scoring, batched, logits_of

_TOKENS_AT_A_TIME = 2048
"""Logits of all positions are large: no batch has more tokens than this, but for a window that alone has more."""

_NATS, _NATS_OF_END, _RIGHT, _LABELS, _BYTES = range(5)
"""What is summed of an item: loss of its labels, of its end alone, labels that were likeliest, labels, bytes."""


def rows_of(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> list[TokenRow]:
    """All windows of the texts."""
    return [row for piece in _pieces_of(built, examples, spec) for row in piece.rows]


def score_texts(built: Built, examples: Sequence[Example], spec: RunSpec) -> Scoring:
    """Score a task of plain text on the very tokens that a training would learn, under the metrics it names.

    Items are documents or, where the task joins its rows, windows of `data.max_length` tokens; or conversations, of
    which only the assistant's turns are scored.

    loss: Nats per token, of all tokens together: the sum of their losses by their number.
    perplexity: e to the loss.
    token_accuracy: The share of tokens that the model gave the largest logit.
    bits_per_byte: The loss of the text's own tokens, without the end of each document, in bits per byte of its UTF-8.
        It does not depend on the tokenizer (Gao et al. 2020, The Pile, https://arxiv.org/abs/2101.00027, section 3.1).

    All of them are (functions of) ratios of sums. An item's outcome is its linearised part in that: for a ratio R of
    sums of x and y over n items, R + n (x - R y) / sum(y); for perplexity, by the delta method, that of the loss times
    the perplexity. Their mean is the metric, and their spread gives its standard error (Cochran 1977, Sampling
    Techniques, section 6.3), so that paired tests need nothing of their own.
    """
    pieces = _pieces_of(built, examples, spec)
    rows = [row for piece in pieces for row in piece.rows]
    here = processes.world()
    found: dict[int, list[float]] = {}
    for indices in batched(rows, few_tokens(spec.batch, rows))[here.rank :: here.size]:
        logits, batch = logits_of(built, [rows[index] for index in indices])
        found.update(zip(indices, _sums(logits, batch, [rows[index] for index in indices]), strict=True))
        yield Progress(done=min(len(found) * here.size, len(rows)), total=len(rows))
    found = processes.merged(found)
    per_row = iter(found[index] for index in range(len(rows)))
    sums = np.array(
        [[*np.sum([next(per_row) for _ in piece.rows], axis=0), piece.num_bytes] for piece in pieces], dtype=np.float64
    )
    outcomes = {name: _outcomes(name, sums) for name in spec.task.metrics}
    shared = [piece.cluster for piece in pieces]
    return Scored(
        metrics={name: mean(values, spec.task.metrics[name], shared) for name, values in outcomes.items()},
        outcomes=outcomes,
        samples=[],
        items=[piece.item for piece in pieces],
        clusters=shared,
        notes={
            **clusters_note(spec.task, shared),
            "windows": len(rows),
            "tokens": int(sums[:, _LABELS].sum()),
            "bytes": round(sums[:, _BYTES].sum()),
            "empty_texts": len(examples) - len(pieces) if spec.task.join is None else 0,
        },
        num_tokens=int(sums[:, _LABELS].sum()),
    )


def _pieces_of(built: Built, examples: Sequence[Example], spec: RunSpec) -> list[windows.Piece]:
    if spec.task.messages:
        writing = conversations.writing_of(built.tokenizer, spec.task, spec.data.chat_template)
        return conversations.pieces(examples, built.tokenizer, writing, max_length=spec.data.max_length)
    return windows.pieces(examples, built.tokenizer, max_length=spec.data.max_length, join=spec.task.join)


def few_tokens(batch: BatchSettings, rows: Sequence[TokenRow]) -> BatchSettings:
    """The settings of evaluation batches, small enough for the logits of every position of such rows."""
    longest = max(len(row.ids) for row in rows)
    size = min(batch.per_device_eval_batch_size, max(1, _TOKENS_AT_A_TIME // longest))
    return batch.model_copy(update={"per_device_eval_batch_size": size})


def _sums(logits: torch.Tensor, batch: Batch, rows: Sequence[TokenRow]) -> list[list[float]]:
    """For each row the sums over its labels, but for the bytes."""
    losses, mask = loss.token_losses(logits, batch)
    assert batch.labels is not None
    likeliest = logits[:, -batch.keep :][:, :-1].argmax(dim=-1)
    right = (likeliest == batch.labels[:, batch.first_label :])[mask]
    counts = mask.sum(dim=1).tolist()
    parts, hits_of = torch.split(losses.double(), counts), torch.split(right, counts)
    return [
        [float(of_row.sum()), float(of_row[-1]) if row.has_eos else 0.0, float(hits.sum()), float(len(of_row))]
        for row, of_row, hits in zip(rows, parts, hits_of, strict=True)
    ]


def _outcomes(name: str, sums: np.ndarray) -> np.ndarray:
    """One number an item, whose mean is the metric."""
    if name == "perplexity":
        of_loss = _outcomes("loss", sums)
        value = of_loss.mean()
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(np.exp(value) * (1 + of_loss - value))
    parts, wholes = {
        "loss": (sums[:, _NATS], sums[:, _LABELS]),
        "token_accuracy": (sums[:, _RIGHT], sums[:, _LABELS]),
        "bits_per_byte": ((sums[:, _NATS] - sums[:, _NATS_OF_END]) / math.log(2), sums[:, _BYTES]),
    }[name]
    ratio = parts.sum() / wholes.sum()
    return np.asarray(ratio + len(sums) * (parts - ratio * wholes) / wholes.sum())


def text_loss(built: Built, texts: Sequence[str], *, batch_size: int, row_tokens: int | None = None) -> Scoring:
    """Token-weighted loss on general text, in nats per token; never counts padding.

    Either on the first windows of the joined texts, which do not overlap and all have the same length; or, with
    `row_tokens`, on each text by itself, with the tokenizer's own special tokens and cut at so many tokens
    (dialect s0). The loss is of all tokens together: a row's outcome is its mean loss times its share of the tokens,
    times the number of rows, so that the outcomes' mean is that loss.
    """
    rows = _windows(built, texts) if row_tokens is None else _pieces(built, texts, row_tokens)
    if not rows:
        raise UserError("the forgetting text is shorter than one window", fix="set data.forgetting=null")
    if built.method.rows_alone:
        batch_size = 1
    elif row_tokens is not None:
        batch_size = max(1, batch_size * TEXT_WINDOW_TOKENS // row_tokens)  # as many tokens at a time as of windows
    means: list[float] = []
    for start in range(0, len(rows), batch_size):
        logits, batch = logits_of(built, rows[start : start + batch_size])
        losses, mask = loss.token_losses(logits, batch)
        means += [float(part.mean()) for part in torch.split(losses.double(), mask.sum(dim=1).tolist())]
        yield Progress(done=len(means), total=len(rows))
    counts = np.array([row.num_labels for row in rows])
    weights = counts * len(rows) / counts.sum()
    values = np.array(means) * weights
    metric = mean(values, "lower")
    if (weights != 1).any() and len(rows) > 1:  # of a ratio: the spread that the rows' lengths explain is none
        error = float((values - metric.mean * weights).std(ddof=1) / math.sqrt(len(rows)))
        metric = metric.model_copy(update={"standard_error": error})
    return Scored(
        metrics={"loss": metric},
        outcomes={"loss": values},
        samples=[],
        items=[row.item for row in rows],
        num_tokens=int(counts.sum()),
    )


def _windows(built: Built, texts: Sequence[str]) -> list[TokenRow]:
    ids: list[int] = []
    for text in texts:
        if len(ids) >= TEXT_WINDOWS * TEXT_WINDOW_TOKENS:
            break
        ids.extend(built.tokenizer(text, add_special_tokens=False)["input_ids"])
    count = min(TEXT_WINDOWS, len(ids) // TEXT_WINDOW_TOKENS)
    starts = [number * TEXT_WINDOW_TOKENS for number in range(count)]
    return [_plain_row(ids[start : start + TEXT_WINDOW_TOKENS]) for start in starts]


def _pieces(built: Built, texts: Sequence[str], row_tokens: int) -> list[TokenRow]:
    cut = [built.tokenizer(text, truncation=True, max_length=row_tokens)["input_ids"] for text in texts]
    return [_plain_row(ids) for ids in cut if len(ids) > 1]


def _plain_row(ids: Sequence[int]) -> TokenRow:
    """Text of no task; its id is its tokens, so that only equal texts are ever compared."""
    return TokenRow(item=digest(list(ids)), ids=tuple(ids), labels_from=0, has_eos=False, truncated=False)
