"""The loss on plain text, of all its tokens together; never counts padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from peftlab.config.spec import TEXT_WINDOW_TOKENS, TEXT_WINDOWS
from peftlab.digest import digest
from peftlab.errors import UserError
from peftlab.events import Progress
from peftlab.loop import loss
from peftlab.modelling.models import Built
from peftlab.rows.tokenise import TokenRow
from peftlab.scores.grading import Scored, mean
from peftlab.scores.passes import Scoring, logits_of


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
