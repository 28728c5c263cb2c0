"""A row's output does not depend on the rows beside it, nor on padding; on rounding only."""

from __future__ import annotations

import dataclasses

import torch

from peftlab.invariants.findings import Finding, compared, said
from peftlab.invariants.starting import difference, worst
from peftlab.invariants.trial import Trial, logits_of
from peftlab.modelling.models import Built
from peftlab.rows.batching import Batch, collate


def neighbours(trial: Trial) -> Finding:
    """Each row alone against the same row in a batch: padded on the right as training and scoring do it, and on the
    left as generation does it, for methods whose batches are padded then (others get rows of one length)."""
    built, rows = trial.reloaded, trial.token_rows
    if built.method.rows_alone:
        text = "rows are scored one at a time: the method mixes the rows of a batch"
        return said("neighbours", "stated", text)
    batch = trial.batch(built)
    together = logits_of(built, batch)
    figures, left = [], []
    generates = batch.labels is not None and not built.equal_lengths
    padded = _on_the_left(built, batch) if generates else None
    for index, row in enumerate(rows):
        alone = collate([row], pad_id=built.pad_id).to(built.device)
        logits = logits_of(built, alone)[0]
        if batch.labels is None:
            figures.append(difference(logits, together[index]))
            continue
        length = len(row.ids)
        begin = batch.input_ids.shape[1] - batch.keep  # the first position that `together` holds
        mine = together[index, length - len(logits) - begin : length - begin]
        figures.append(difference(logits, mine))
        if padded is not None:
            left.append(difference(logits, padded[index, -len(logits) :]))
    what = "alone or in a batch" + ("" if generates or batch.labels is None else " (generation: rows of one length)")
    return compared(
        "neighbours",
        worst([*figures, *left]),
        trial.allowed,
        what=f"a row {what}",
        fix="set batch.per_device_eval_batch_size=1: the method mixes the rows of a batch",
    )


def _on_the_left(built: Built, batch: Batch) -> torch.Tensor:
    """Logits of the rows with their padding moved to the left, and positions counted from the first real token."""
    ids, mask = torch.full_like(batch.input_ids, built.pad_id), torch.zeros_like(batch.attention_mask)
    for index, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        ids[index, -length:] = batch.input_ids[index, :length]
        mask[index, -length:] = 1
    moved = dataclasses.replace(batch, input_ids=ids, attention_mask=mask, labels=None)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    extra = built.method.forward_inputs(moved) if built.method.forward_inputs is not None else {}
    built.model.eval()
    with torch.no_grad():
        outputs = built.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **extra)
    return outputs.logits.float()  # type: ignore[no-any-return]
