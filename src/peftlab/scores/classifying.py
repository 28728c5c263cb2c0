"""The classes, or the numbers, that a model's head gives to texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from peftlab.config.spec import RunSpec
from peftlab.events import Progress
from peftlab.modelling.models import Built
from peftlab.parallel import processes
from peftlab.protocols import Example, Prediction
from peftlab.rows import tokenise
from peftlab.rows.tokenise import TokenRow
from peftlab.scores.passes import Predicting, batched, logits_of


def rows_of(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> list[TokenRow]:
    """Every example as one row."""
    return tokenise.tokenise(
        examples,
        built.tokenizer,
        kind="classify",
        max_length=spec.data.max_length,
        loss_mask="answer",
        pair_separator=spec.data.pair_separator,
    )[0]


def classify(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> Predicting:
    """The class with the largest logit, for every example; in the order of `examples`."""
    return _read(built, examples, spec, shots, _class_of)


def regress(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> Predicting:
    """The number that the head gives, for every example; in the order of `examples`."""
    return _read(built, examples, spec, shots, _value_of)


def _read(
    built: Built,
    examples: Sequence[Example],
    spec: RunSpec,
    shots: Sequence[Example],
    said: Callable[[Sequence[float]], Prediction],
) -> Predicting:
    rows = rows_of(built, examples, spec, shots)
    here = processes.world()
    found: dict[int, list[float]] = {}
    for indices in batched(rows, spec.batch)[here.rank :: here.size]:
        logits, _ = logits_of(built, [rows[index] for index in indices])
        found.update(zip(indices, logits.float().tolist(), strict=True))
        yield Progress(done=min(len(found) * here.size, len(rows)), total=len(rows))
    found = processes.merged(found)
    return [said(found[index]) for index in range(len(rows))], sum(row.truncated for row in rows)


def _value_of(scores: Sequence[float]) -> Prediction:
    (value,) = scores
    return Prediction(value=value) if math.isfinite(value) else Prediction(finish="not_finite")


def _class_of(scores: Sequence[float]) -> Prediction:
    known = not np.isnan(scores).any()  # argmax would call a diverged model class 0
    return Prediction(index=int(np.argmax(scores)) if known else None, scores=tuple(scores))
