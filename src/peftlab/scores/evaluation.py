"""Task + model to graded samples and metrics: generate, choose by likelihood, classify; and the loss on general text.

Scores whatever `Built` it is given. Which weights are scored, and where the result is kept, is `runs.py`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from peftlab.config.examples import with_shots
from peftlab.config.groups import BatchSettings
from peftlab.config.spec import TEXT_WINDOW_TOKENS, TEXT_WINDOWS, RunSpec
from peftlab.config.task import Task
from peftlab.digest import digest
from peftlab.errors import UserError
from peftlab.events import Progress
from peftlab.loop import loss
from peftlab.loop.training import forward
from peftlab.modelling import models
from peftlab.modelling.models import Built
from peftlab.parallel import processes
from peftlab.protocols import Example, Grade, Grader, Prediction, Prompt, find, metric_name
from peftlab.records.record import Metric
from peftlab.rows import tokenise
from peftlab.rows.batching import collate
from peftlab.rows.tokenise import TokenRow
from peftlab.scores import generation

TRUNCATED = "truncated"
"""Note of an evaluation: items that lost text at `data.max_length`, or whose prompt left no room for an answer."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The outcome of one evaluation.

    Attributes:
        metrics: By name, the task's primary one first.
        outcomes: Per metric, one number an item, in the order of `items`.
        samples: One JSON-able object an item, enough to read and to grade again.
    """

    metrics: dict[str, Metric]
    outcomes: dict[str, np.ndarray]
    samples: list[dict[str, Any]]
    items: list[str]
    baselines: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    num_tokens: int | None = None


Scoring = Generator[Progress, None, Scored]
Predicting = Generator[Progress, None, tuple[list[Prediction], int]]
"""Returns the predictions, and how many items did not fit whole."""


def score(built: Built, examples: Sequence[Example], spec: RunSpec, *, shots: Sequence[Example] = ()) -> Scoring:
    """Predict and grade `examples`; yields progress, returns a `Scored`.

    Raises:
        UserError: The task's grader or engine is unknown, or nothing is left to score.
    """
    if not examples:
        raise UserError(f"task '{spec.task.name}': there are no rows to score", fix="mend the task's splits")
    models.use_arithmetic(spec.model)
    spec = _rows_alone(spec, built)
    predict = {"generate": _generate, "choose": _choose, "classify": _classify}[spec.task.kind]
    predictions, cut = yield from predict(built, examples, spec, shots)
    found = grade(spec.task, examples, predictions)
    return replace(found, notes={**found.notes, TRUNCATED: cut})


def _rows_alone(spec: RunSpec, built: Built) -> RunSpec:
    """The spec with batches of one row, where the method mixes the rows of a batch."""
    if not built.method.rows_alone:
        return spec
    return spec.model_copy(update={"batch": spec.batch.model_copy(update={"per_device_eval_batch_size": 1})})


def grade(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Scored:
    """Grade predictions under every mode of the task's grader. Needs no model."""
    grader: Grader = find("graders", task.grader.name)
    modes = task.grader.modes or grader.modes
    for mode in modes:
        if mode not in grader.modes:
            raise UserError(
                f"task '{task.name}': grader '{task.grader.name}' has no mode '{mode}'",
                fix=f"modes: {', '.join(grader.modes)}",
            )
    grades = {
        mode: [
            grader.grade(prediction, example, mode) for prediction, example in zip(predictions, examples, strict=True)
        ]
        for mode in modes
    }
    outcomes = {
        metric_name(grader, mode): np.array([grade.score for grade in found], dtype=np.float64)
        for mode, found in grades.items()
    }
    summary = dict(grader.summary(grades[modes[0]], examples))
    metrics = {name: _mean(values, task.metrics.get(name, "higher")) for name, values in outcomes.items()}
    primary_first = sorted(metrics, key=lambda name: (name != task.primary_metric, list(metrics).index(name)))
    return Scored(
        metrics={name: metrics[name] for name in primary_first},
        outcomes=outcomes,
        samples=[
            _sample(example, prediction, {mode: found[index] for mode, found in grades.items()})
            for index, (example, prediction) in enumerate(zip(examples, predictions, strict=True))
        ],
        items=[example.item for example in examples],
        baselines={name: value for name, value in summary.items() if name.startswith("baseline")},
        notes={
            **{name: value for name, value in summary.items() if not name.startswith("baseline")},
            "valid_answers": {mode: sum(grade.valid for grade in found) for mode, found in grades.items()},
        },
        num_tokens=sum(prediction.num_tokens or 0 for prediction in predictions) or None,
    )


def _mean(values: np.ndarray, direction: Any) -> Metric:
    """Mean and its standard error over items: s / sqrt(n), with the sample standard deviation."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return Metric(mean=float(values.mean()), standard_error=error, n=len(values), direction=direction)


def _sample(example: Example, prediction: Prediction, grades: Mapping[str, Grade]) -> dict[str, Any]:
    said = {
        name: value
        for name, value in vars(prediction).items()
        if value is not None and value != () and not (name == "scores" and len(value) == 0)
    }
    judged = {
        mode: {"score": found.score, "answer": found.answer, "valid": found.valid} for mode, found in grades.items()
    }
    return {
        "item": example.item,
        "columns": dict(example.columns),
        "reference": example.reference,
        "prediction": said,
        "grades": judged,
    }


# ---------------------------------------------------------------------------------------------------- generating


def prompts_of(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> list[Prompt]:
    """Tokenised prompts with their own limits: plain, few-shot, or in the model's chat template."""
    result = []
    for example in examples:
        text = with_shots(spec.task, example, shots)
        render = tokenise.chat_prompt if spec.generation.chat_template else tokenise.prompt_ids
        ids = render(text, built.tokenizer)
        result.append(Prompt(token_ids=ids, max_new_tokens=generation.limit(len(ids), spec.generation), text=text))
    return generation.limited(result, spec.generation, spec.batch, equal_lengths=built.equal_lengths)


def stop_strings(spec: RunSpec) -> tuple[str, ...]:
    """The declared stop strings; after few-shot examples also what separates them."""
    return (*spec.generation.stop, *((spec.task.separator,) if spec.generation.few_shot else ()))


def _generate(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> Predicting:
    prompts = prompts_of(built, examples, spec, shots)
    session = find("engines", spec.generation.engine).open(built)
    here = processes.world()
    answers: dict[int, list[Any]] = {}
    try:
        for batch in generation.generate(
            session,
            prompts,
            generation.options_of(built, spec.generation, stop_strings(spec)),
            batch_size=spec.batch.per_device_eval_batch_size,
            equal_lengths=built.equal_lengths,
            seed=spec.seed,
            order=spec.batch.eval_order,
            here=here,
        ):
            answers.update({index: [one.text, one.finish, one.num_tokens] for index, one in batch.items()})
            yield Progress(done=min(len(answers) * here.size, len(prompts)), total=len(prompts))
    finally:
        session.close()
    answers = processes.merged(answers)
    found = (answers[index] for index in range(len(prompts)))
    predictions = [Prediction(text=text, finish=finish, num_tokens=num_tokens) for text, finish, num_tokens in found]
    return predictions, sum(one.finish == "prompt_too_long" for one in predictions)


def rehearse(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> None:
    """Run the heaviest evaluation batch once, to its full length: out of memory shows now, not at the end."""
    spec = _rows_alone(spec, built)
    if spec.task.kind != "generate":
        rows = _rows(built, examples, spec, shots)
        longest = sorted(rows, key=lambda row: -len(row.ids))[: spec.batch.per_device_eval_batch_size]
        _forward(built, longest)
        return
    prompts = prompts_of(built, examples, spec, shots)
    size, order = spec.batch.per_device_eval_batch_size, spec.batch.eval_order
    found = generation.batches(prompts, size, equal_lengths=built.equal_lengths, order=order)
    if not found:
        return
    heaviest = max(found, key=lambda batch: sum(_length(prompts[index]) for index in batch))
    session = find("engines", spec.generation.engine).open(built)
    options = generation.options_of(built, spec.generation, stop_strings(spec), full_length=True)
    try:
        for _ in generation.generate(
            session,
            [prompts[index] for index in heaviest],
            options,
            batch_size=len(heaviest),
            equal_lengths=built.equal_lengths,
            seed=spec.seed,
        ):
            pass
    finally:
        session.close()


def _length(prompt: Prompt) -> int:
    return len(prompt.token_ids) + prompt.max_new_tokens


# ---------------------------------------------------------------------------------------- choosing and classifying


def _rows(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> list[TokenRow]:
    """Rows to score by one forward pass: every choice of every example, or every example."""
    if spec.task.kind == "classify":
        return tokenise.tokenise(
            examples, built.tokenizer, kind="classify", max_length=spec.data.max_length, loss_mask="answer"
        )[0]
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


def _batched(rows: Sequence[TokenRow], batch: BatchSettings) -> list[list[int]]:
    ordered, size = list(range(len(rows))), batch.per_device_eval_batch_size
    if batch.eval_order == "length":
        ordered.sort(key=lambda index: -len(rows[index].ids))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _forward(built: Built, rows: Sequence[TokenRow]) -> tuple[torch.Tensor, Any]:
    built.model.eval()
    batch = collate(rows, pad_id=built.pad_id).to(built.device)
    with torch.no_grad():
        return forward(built, batch).logits, batch


def _choose(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> Predicting:
    """Score every choice by the summed log-likelihood of its tokens; one cut off by `data.max_length` cannot win."""
    rows = _rows(built, examples, spec, shots)
    whole = [index for index, row in enumerate(rows) if not row.truncated]
    here = processes.world()
    likelihood: dict[int, float] = {}
    batches = _batched([rows[index] for index in whole], spec.batch)
    for places in batches[here.rank :: here.size]:
        indices = [whole[place] for place in places]
        logits, batch = _forward(built, [rows[index] for index in indices])
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


def _classify(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> Predicting:
    rows = _rows(built, examples, spec, shots)
    here = processes.world()
    found: dict[int, list[float]] = {}
    for indices in _batched(rows, spec.batch)[here.rank :: here.size]:
        logits, _ = _forward(built, [rows[index] for index in indices])
        found.update(zip(indices, logits.float().tolist(), strict=True))
        yield Progress(done=min(len(found) * here.size, len(rows)), total=len(rows))
    found = processes.merged(found)
    return [_class_of(found[index]) for index in range(len(rows))], sum(row.truncated for row in rows)


def _class_of(scores: Sequence[float]) -> Prediction:
    known = not np.isnan(scores).any()  # argmax would call a diverged model class 0
    return Prediction(index=int(np.argmax(scores)) if known else None, scores=tuple(scores))


# ----------------------------------------------------------------------------------------------- loss on general text


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
        logits, batch = _forward(built, rows[start : start + batch_size])
        losses, mask = loss.token_losses(logits, batch)
        means += [float(part.mean()) for part in torch.split(losses.double(), mask.sum(dim=1).tolist())]
        yield Progress(done=len(means), total=len(rows))
    counts = np.array([row.num_labels for row in rows])
    weights = counts * len(rows) / counts.sum()
    values = np.array(means) * weights
    metric = _mean(values, "lower")
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
