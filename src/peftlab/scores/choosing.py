"""Choices by likelihood: every choice of every example scored by the log-likelihood of its tokens.

A prompt is computed once: its keys and values are kept, and the choices go on from them. Where a model or a method
cannot do that, every choice is computed with its prompt. Both give the same numbers up to rounding; which one is taken
is found by trying (`_agree`), never by a name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import DynamicCache

from peftlab.config.examples import with_shots
from peftlab.config.groups import BatchSettings
from peftlab.config.spec import RunSpec
from peftlab.events import Progress
from peftlab.loop import loss
from peftlab.modelling.models import Built
from peftlab.parallel import processes
from peftlab.protocols import Example, Prediction
from peftlab.rows import tokenise
from peftlab.rows.batching import Batch, collate
from peftlab.rows.tokenise import TokenRow
from peftlab.scores.passes import Predicting, batched, logits_of

ROUNDING = 64
"""How many units of the model's precision two ways to the same likelihood may lie apart, relative to its size."""
MOST = 0.05
"""The same at most, relative: half precision is too coarse to tell more than a gross difference."""

TRIED = 8
"""Rows that are scored both ways: of the first batch, which is the same for every process of a launch."""

Likelihoods = list[float]


def rows_of(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> list[TokenRow]:
    """Every choice of every example as one row, without an end-of-sequence token."""
    options = [
        Example(item=example.item, prompt=with_shots(spec.task, replace(example, prompt=context), shots), target=choice)
        for example in examples
        for context, choice in zip(_contexts(example), example.choices, strict=True)
    ]
    rows, _ = tokenise.tokenise(
        options, built.tokenizer, kind="causal", max_length=spec.data.max_length, loss_mask="answer"
    )
    return [_without_eos(row) for row in rows]


def _contexts(example: Example) -> Sequence[str]:
    """What each choice stands behind: the prompt, or one of its own."""
    return example.contexts or (example.prompt,) * len(example.choices)


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
    of_item = _of_item(examples)
    whole = [item for item in of_item if not any(rows[place].truncated for place in item)]
    here = processes.world()
    batches, score = _way(built, rows, whole, spec.batch)
    likelihood: dict[int, float] = {}
    total = sum(len(item) for item in whole)
    for places in batches[here.rank :: here.size]:
        likelihood.update(zip(places, score(built, [rows[place] for place in places]), strict=True))
        yield Progress(done=min(len(likelihood) * here.size, total), total=total)
    likelihood = processes.merged(likelihood)
    result = [_prediction([likelihood.get(place) for place in item]) for item in of_item]
    return result, sum(one.finish == "prompt_too_long" for one in result)


def _of_item(examples: Sequence[Example]) -> list[range]:
    """The places of every example's choices among the rows."""
    ends = np.cumsum([len(example.choices) for example in examples]).tolist()
    return [range(end - len(example.choices), end) for example, end in zip(examples, ends, strict=True)]


def _prediction(scores: Sequence[float | None]) -> Prediction:
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return Prediction(finish="prompt_too_long")
    if not np.isfinite(known).all():
        return Prediction(finish="not_finite")
    return Prediction(index=int(np.argmax(known)), scores=tuple(known))


# ------------------------------------------------------------------------------------------------- the two ways


def _way(
    built: Built, rows: Sequence[TokenRow], items: Sequence[range], batch: BatchSettings
) -> tuple[list[list[int]], Callable[[Built, Sequence[TokenRow]], Likelihoods]]:
    """The batches to score, as places of rows, and how: with prompts computed once where that can be."""
    places = [place for item in items for place in item]
    asked = [rows[place] for place in places]
    together = _batches(rows, items, batch)
    if _may_go_on(built, asked) and _agree(built, [rows[place] for place in together[0][:TRIED]]):
        return together, _going_on
    return [[places[index] for index in one] for one in batched(asked, batch)], _whole


def _batches(rows: Sequence[TokenRow], items: Sequence[range], batch: BatchSettings) -> list[list[int]]:
    """Whole items in batches of at most so many rows as the settings say, or of one item that has more."""
    ordered = list(items)
    if batch.eval_order == "length":
        ordered.sort(key=lambda item: -max(len(rows[place].ids) for place in item))
    result: list[list[int]] = []
    for item in ordered:
        if not result or len(result[-1]) + len(item) > batch.per_device_eval_batch_size:
            result.append([])
        result[-1].extend(item)
    return result


def _may_go_on(built: Built, rows: Sequence[TokenRow]) -> bool:
    """Whether keys and values can be kept at all: every row has a prompt, and rows are what they are by themselves."""
    alone = built.equal_lengths or built.method.rows_alone or built.method.forward_inputs is not None
    return bool(rows) and not alone and all(row.labels_from > 0 for row in rows)


def _agree(built: Built, rows: Sequence[TokenRow]) -> bool:
    """Whether both ways give these rows the same likelihoods, up to the rounding of the model's precision.

    Some methods look at the whole text (which of their parts act, and from where), and some models keep a state of
    another kind: those differ here.
    """
    if not _keeps(built, rows[0]):
        return False
    precision = max(torch.finfo(one.dtype).eps for one in built.model.parameters() if one.is_floating_point())
    once, whole = np.array(_going_on(built, rows)), np.array(_whole(built, rows))
    allowed = min(ROUNDING * precision, MOST)
    return bool(np.allclose(once, whole, rtol=allowed, atol=allowed, equal_nan=True))


def _keeps(built: Built, row: TokenRow) -> bool:
    """Whether the model returns keys and values that rows can be selected of."""
    built.model.eval()
    ids = torch.tensor([row.ids[:1]], device=built.device)
    with torch.no_grad():
        found = built.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    return isinstance(found.get("past_key_values"), DynamicCache)


def _whole(built: Built, rows: Sequence[TokenRow]) -> Likelihoods:
    """Every choice behind its own copy of the prompt."""
    logits, batch = logits_of(built, rows)
    return _summed(logits, batch)


def _going_on(built: Built, rows: Sequence[TokenRow]) -> Likelihoods:
    """Every distinct prompt once, then every choice on from its prompt's keys and values.

    Prompts are padded on the left, so that a choice stands right behind its prompt, as in `generate`: a window of
    attention then covers the same tokens as without padding. Positions count real tokens.
    """
    built.model.eval()
    prompts = list(dict.fromkeys(row.ids[: row.labels_from] for row in rows))
    width = max(map(len, prompts))
    ids = torch.tensor([(built.pad_id,) * (width - len(one)) + one for one in prompts], device=built.device)
    lengths = torch.tensor([len(one) for one in prompts], device=built.device)
    mask = (torch.arange(width, device=built.device) >= width - lengths[:, None]).long()
    choices = [TokenRow(row.item, row.ids[row.labels_from - 1 :], 1, False, False) for row in rows]
    batch = collate(choices, pad_id=built.pad_id).to(built.device)
    of_row = torch.tensor([prompts.index(row.ids[: row.labels_from]) for row in rows], device=built.device)
    with torch.no_grad():
        found = built.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=True,
            **({"logits_to_keep": 1} if built.trims_logits else {}),
        )
        first = found.logits[of_row, -1:]
        parts = [first]
        if batch.input_ids.shape[1] > 2:  # some choice has a second token, which the first one predicts
            found.past_key_values.batch_select_indices(of_row)
            more, there = batch.input_ids[:, 1:-1], batch.attention_mask[:, 1:-1]
            parts.append(
                built.model(
                    input_ids=more,
                    attention_mask=torch.cat([mask[of_row], there], dim=1),
                    position_ids=lengths[of_row, None] + torch.arange(more.shape[1], device=built.device),
                    past_key_values=found.past_key_values,
                    use_cache=True,
                ).logits
            )
    return _summed(torch.cat([*parts, first], dim=1), batch)  # what the last token predicts is never read


def _summed(logits: torch.Tensor, batch: Batch) -> Likelihoods:
    losses, mask = loss.token_losses(logits, batch)
    return [-float(part.sum()) for part in torch.split(losses.double(), mask.sum(dim=1).tolist())]
