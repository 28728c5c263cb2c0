"""Forward passes over rows that are scored, in batches. Knows no task and no metric."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch

from peftlab.config.groups import BatchSettings
from peftlab.events import Progress
from peftlab.loop.training import forward
from peftlab.modelling.models import Built
from peftlab.protocols import Prediction
from peftlab.rows.batching import collate
from peftlab.rows.tokenise import TokenRow
from peftlab.scores.grading import Scored

Scoring = Generator[Progress, None, Scored]
Predicting = Generator[Progress, None, tuple[list[Prediction], int]]
"""Returns the predictions, and how many items did not fit whole."""


def batched(rows: Sequence[TokenRow], batch: BatchSettings) -> list[list[int]]:
    """Indices of rows in batches, the longest first where `batch.eval_order` says so."""
    ordered, size = list(range(len(rows))), batch.per_device_eval_batch_size
    if batch.eval_order == "length":
        ordered.sort(key=lambda index: -len(rows[index].ids))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def logits_of(built: Built, rows: Sequence[TokenRow]) -> tuple[torch.Tensor, Any]:
    """Logits (rows, tokens, vocabulary) or (rows, classes) of some rows, and the batch they stand in."""
    built.model.eval()
    batch = collate(rows, pad_id=built.pad_id).to(built.device)
    with torch.no_grad():
        return forward(built, batch).logits, batch
