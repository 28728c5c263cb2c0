"""Per-token loss on label positions, from logits: the only place where a loss is computed.

It returns sums and counts, never means: the loop divides by the global count, so that neither padding, nor batch
size, nor accumulation, nor the number of processes changes what a token weighs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from peftlab.rows.batching import IGNORE, Batch


@dataclass(frozen=True, kw_only=True)
class LossSum:
    """Summed loss over one batch; `batch.weight` is what it is divided by.

    Attributes:
        total: Sum over label tokens (rows, for classification) of weight x loss; a scalar with a graph.
        count: Number of label tokens.
        unweighted: Sum of the losses with weight 1; a scalar with a graph.
    """

    total: torch.Tensor
    count: int
    unweighted: torch.Tensor


def from_logits(logits: torch.Tensor, batch: Batch) -> LossSum:
    """The loss of a causal model, a classifier or a regression.

    Cross entropy of each label token or row; for a regression the squared error of each row.

    Args:
        logits: Causal: [rows, positions, vocabulary]; only the last `batch.keep` positions are read, so virtual
            tokens before the text and trimmed logits need no care. Classifier: [rows, classes]; regression: [rows, 1].
        batch: Labels and weights.
    """
    if batch.classes is not None:
        losses = _head_losses(logits.float(), batch.classes)
        total = losses.sum()
        return LossSum(total=total, count=len(losses), unweighted=total)
    losses, mask = token_losses(logits, batch)
    total = losses.sum()
    if batch.weights is None:
        return LossSum(total=total, count=len(losses), unweighted=total)
    weights = batch.weights[:, batch.first_label :][mask]
    return LossSum(total=(losses * weights).sum(), count=len(losses), unweighted=total)


def as_the_library(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The mean loss that a transformers model computes from these labels, in its own arithmetic.

    A causal model's logits are made float32 first (`ForCausalLMLoss`), a classifier's are not
    (`ForSequenceClassificationLoss`, for classes and for values), so that half precision rounds its loss.
    """
    if batch.classes is not None:
        return _head_losses(logits, batch.classes).mean()
    losses, _ = token_losses(logits, batch)
    return losses.mean()


def _head_losses(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """The loss of each row: cross entropy of its class, or the squared error of its value."""
    if answers.is_floating_point():
        return functional.mse_loss(logits.squeeze(-1), answers, reduction="none")
    return functional.cross_entropy(logits, answers, reduction="none")


def token_losses(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of each label token, in float32, in row order; and the mask [rows, positions] of where they lie.

    The label at position t is predicted from position t - 1.
    """
    assert batch.labels is not None
    predicted = logits[:, -batch.keep :][:, :-1]
    targets = batch.labels[:, batch.first_label :]
    mask = targets != IGNORE
    return functional.cross_entropy(predicted[mask].float(), targets[mask], reduction="none"), mask
