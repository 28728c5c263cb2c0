"""Choices by likelihood: every choice of every example scored by the log-likelihood of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from peftlab.config.examples import with_shots
from peftlab.config.spec import RunSpec
from peftlab.events import Progress
from peftlab.loop import loss
from peftlab.modelling.models import Built
from peftlab.parallel import processes
from peftlab.protocols import Example, Prediction
from peftlab.rows import tokenise
from peftlab.rows.tokenise import TokenRow
from peftlab.scores.passes import Predicting, batched, logits_of


def rows_of(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> list[TokenRow]:
    """Every choice of every example as one row, without an end-of-sequence token."""
    options = [
        Example(item=example.item, prompt=with_shots(spec.task, example, shots), target=choice)
        for example in examples
        for choice in example.choices
    ]
    rows, _ = tokenise.tokenise(
        options, built.tokenizer, kind="causal", max_length=spec.data.max_length, loss_mask="answer"
    )
    return [_without_eos(row) for row in rows]


def _without_eos(row: TokenRow) -> TokenRow:
    """A choice is scored on its own tokens; whether the model would stop there is not asked."""
    if not row.has_eos:
        return row
    return TokenRow(
        item=row.item, ids=row.ids[:-1], labels_from=row.labels_from, has_eos=False, truncated=row.truncated
    )


def choose(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> Predicting:
    """Score every choice by the summed log-likelihood of its tokens; one cut off by `data.max_length` cannot win."""
    rows = rows_of(built, examples, spec, shots)
    whole = [index for index, row in enumerate(rows) if not row.truncated]
    here = processes.world()
    likelihood: dict[int, float] = {}
    batches = batched([rows[index] for index in whole], spec.batch)
    for places in batches[here.rank :: here.size]:
        indices = [whole[place] for place in places]
        logits, batch = logits_of(built, [rows[index] for index in indices])
        losses, mask = loss.token_losses(logits, batch)
        counts = mask.sum(dim=1).tolist()
        for index, part in zip(indices, torch.split(losses.double(), counts), strict=True):
            likelihood[index] = -float(part.sum())
        yield Progress(done=min(len(likelihood) * here.size, len(whole)), total=len(whole))
    likelihood = processes.merged(likelihood)
    result, start = [], 0
    for example in examples:
        chosen = range(start, start + len(example.choices))
        scores = np.array([likelihood.get(row, -np.inf) for row in chosen])
        start += len(example.choices)
        if any(row not in likelihood for row in chosen):
            result.append(Prediction(finish="prompt_too_long"))
        elif not np.isfinite(scores).all():
            result.append(Prediction(finish="not_finite"))
        else:
            result.append(Prediction(index=int(scores.argmax()), scores=tuple(float(value) for value in scores)))
    return result, sum(one.finish == "prompt_too_long" for one in result)
