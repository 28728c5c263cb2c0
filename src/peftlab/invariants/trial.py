"""A method on a model, tried: the same few rows in every step, three steps, a checkpoint, three more.

Everything is built and trained as the job does it. Judges nothing: the invariants do.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.events import Step
from peftlab.invariants.findings import ROUNDING
from peftlab.loop import checkpoint, loss, preparation, training
from peftlab.loop.preparation import Prepared
from peftlab.modelling import bookkeeping, merging, models, weights
from peftlab.modelling.models import Base, Built
from peftlab.protocols import Example
from peftlab.rows import data, tokenise, training_rows
from peftlab.rows.batching import Batch, collate
from peftlab.rows.tokenise import TokenRow

KILLED_AT, STEPS = 3, 6
ROWS, CALIBRATION_ROWS = 4, 32
_LOOKED_AT = 200
"""Training rows that the few are chosen from."""


def examined(spec: RunSpec, *, rows: int = ROWS) -> RunSpec:
    """The spec with what an examination asks for: one batch again and again, a constant rate, one process."""
    budget = {"num_train_epochs": None, "max_train_samples": None, "max_train_tokens": None}
    changes: Mapping[str, dict[str, Any]] = {
        "optim": {"warmup_steps": 0, "lr_scheduler_type": "constant"},
        "batch": {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 1, "order": "file"},
        "train": {**budget, "max_steps": max(spec.train.max_steps or 1000, STEPS), "eval_steps": None},
        "model": {"compile": False},
        "launch": {"num_processes": 1, "deepspeed": None, "sharding": None},
        "calibration": {"source": "valid", "rows": CALIBRATION_ROWS},
    }
    groups = {name: getattr(spec, name).model_copy(update=update) for name, update in changes.items()}
    return spec.model_copy(update=groups)


def choose(examples: tuple[Example, ...], tokenizer: Any, spec: RunSpec, *, count: int = ROWS) -> list[Example]:
    """The shortest of the first training rows that have something to learn; they differ in length where the rows do.

    Raises:
        UserError: There are fewer.
    """
    first = examples[:_LOOKED_AT]
    if len(first) < count:
        raise UserError(f"task '{spec.task.name}' has {len(first)} training rows; {count} are needed", fix="add rows")
    rows = _token_rows(first, tokenizer, spec)
    order = sorted(range(len(rows)), key=lambda index: (rows[index].truncated, len(rows[index].ids)))
    able = [index for index in order if spec.task.has_head or rows[index].num_labels > 0]
    distinct = list({len(rows[index].ids): index for index in reversed(able)}.values())[::-1]
    chosen = [*distinct, *(index for index in able if index not in distinct)][:count]
    return [first[index] for index in sorted(chosen)]


def _token_rows(examples: Any, tokenizer: Any, spec: RunSpec) -> list[TokenRow]:
    limit, how = spec.data.max_length, spec.data.chat_template
    if training_rows.in_turns(spec.task, how):
        return training_rows.make(
            examples, tokenizer, spec.task, max_length=limit, loss_mask=spec.data.loss_mask, chat_template=how
        )[0]
    rows, _ = tokenise.tokenise(
        examples,
        tokenizer,
        kind=models.kind_of(spec),
        max_length=limit,
        loss_mask=spec.data.loss_mask,
        pair_separator=spec.data.pair_separator,
    )
    return rows


@dataclass(frozen=True, kw_only=True)
class Course:
    """How the training went.

    Attributes:
        start: Every trainable tensor before step 1, by name.
        start_logits: Of the fixed rows, before step 1.
        losses: Of the fixed rows without dropout: before step 1, and after step 3.
        middle: Every trainable tensor after step 3.
        logits: After step 3.
        end: Every trainable tensor, and what else the method changed, after step 6.
        gradients: For each trainable tensor the steps that it got a gradient in, and those that it was not all zero in.
        moved: Frozen weights of the base that changed.
        kept: Names of the adapter's frozen tensors and buffers that changed, which a checkpoint holds too.
        grouped: How many optimizer groups hold each trainable tensor.
        freed: Trainable tensors that are the base's own, besides a new head, and what else is never switched off.
    """

    start: Mapping[str, torch.Tensor]
    start_logits: torch.Tensor
    losses: tuple[float, float]
    middle: Mapping[str, torch.Tensor]
    logits: torch.Tensor
    end: Mapping[str, torch.Tensor]
    gradients: Mapping[str, tuple[set[int], set[int]]]
    moved: tuple[str, ...]
    kept: tuple[str, ...]
    grouped: Mapping[str, int]
    freed: tuple[str, ...]
    steps: tuple[Step, ...]
    trainable: int
    total: int
    seconds_per_step: float


@dataclass(kw_only=True)
class Trial:
    """An examination of one experiment; what it needs is built when it is asked for, once.

    Attributes:
        spec: As `examined` gives it.
        rows: The few rows, as training rows.
        folder: Where adapter and checkpoint are written.
        pristine: The base as loaded; every model is built on a copy.
    """

    spec: RunSpec
    rows: data.Rows
    folder: Path
    pristine: Base

    def base(self) -> Base:
        """A fresh copy of the base."""
        return dataclasses.replace(self.pristine, model=copy.deepcopy(self.pristine.model))

    def prepare(self, *, seed: int | None = None) -> Prepared:
        """Everything a training starts with, built as the job builds it.

        Raises:
            UserError: Something does not fit together.
        """
        spec = self.spec if seed is None else self.spec.model_copy(update={"seed": seed})
        return preparation.prepare(spec, self.rows, self.base())

    @cached_property
    def first(self) -> Prepared:
        """What is trained; it is used up by `course`."""
        return self.prepare()

    @cached_property
    def token_rows(self) -> list[TokenRow]:
        """The few rows as tokens."""
        return _token_rows(self.rows.train, self.pristine.tokenizer, self.spec)

    def batch(self, built: Built) -> Batch:
        """The few rows as one batch, on the model's device."""
        return collate(self.token_rows, pad_id=built.pad_id).to(built.device)

    def logits(self, built: Built) -> torch.Tensor:
        """What the loss reads of the few rows, without dropout, in float32."""
        return logits_of(built, self.batch(built))

    @cached_property
    def base_logits(self) -> torch.Tensor:
        """The same of the base without an adapter."""
        return self.logits(models.bare(self.base()))

    @property
    def rounding(self) -> float:
        """How far apart two ways to the same number may be, as a share of the largest."""
        return ROUNDING[self.spec.model.dtype]

    @cached_property
    def allowed(self) -> float:
        """How far apart two ways to the same logits may be."""
        return self.rounding * float(self.base_logits.abs().max())

    @property
    def saved(self) -> Path:
        """The adapter after step 3, as the job writes it."""
        _ = self.course
        return self.folder / "adapter"

    @cached_property
    def course(self) -> Course:
        """Train: three steps, save, look, three more.

        Raises:
            UserError: Training ended early, or nothing could be saved.
        """
        return _train(self)

    @cached_property
    def reloaded(self) -> Built:
        """What was saved after step 3, on a fresh base; whoever changes it must load its own."""
        return self.load()

    def load(self) -> Built:
        """What was saved after step 3, on a fresh base, loaded as the job loads it."""
        return weights.load_trained(self.spec, self.saved)

    @cached_property
    def exact(self) -> Trial:
        """What was saved after step 3 on the base in float32: in 16 bits rounding hides even an adapter that is lost.

        A base whose weights have 8 or 4 bits stays as it is.
        """
        if self.spec.model.dtype == "float32" or self.spec.quant.method is not None:
            return self
        spec = merging.in_float32(self.spec)
        base = models.load(spec.model, models.kind_of(spec), labels=spec.task.labels, seed=spec.seed)
        exact = Trial(spec=spec, rows=self.rows, folder=self.folder, pristine=base)
        exact.course = self.course  # it is not trained once more
        return exact

    @cached_property
    def resumed(self) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
        """A second build: its tensors before step 1, and at the end when it goes on from the checkpoint of step 3."""
        _ = self.course
        ready = self.prepare()
        start = _copied(ready.built)
        reference = bookkeeping.take_reference(ready.built)
        checkpoint.restore(self.folder, ready.built, ready.stream, ready.state)
        for step in training.steps(ready.built, ready.stream, self.spec, ready.state):
            if step.step >= STEPS:
                break
        return start, {**_copied(ready.built), **_changed(ready.built, reference)}


def logits_of(built: Built, batch: Batch, **more: Any) -> torch.Tensor:
    """The logits that the loss reads of a batch: the last `batch.keep` positions, without dropout, in float32."""
    built.model.eval()
    with torch.no_grad():
        logits: torch.Tensor = training.forward(built, batch).logits.float()
    return logits if batch.labels is None else logits[:, -batch.keep :]


def _loss(logits: torch.Tensor, batch: Batch) -> float:
    return float(loss.from_logits(logits, batch).total) / batch.weight


def _copied(built: Built) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in built.trainable().items()}


def _changed(built: Built, reference: bookkeeping.Reference) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in bookkeeping.changed_tensors(built, reference).items()}


def _train(trial: Trial) -> Course:
    ready = trial.first
    del trial.first
    built, stream, state = ready.built, ready.stream, ready.state
    reference = bookkeeping.take_reference(built)
    batch = trial.batch(built)
    start, start_logits = _copied(built), trial.logits(built)
    grouped = _grouped(built, state)
    gradients, hooks = _watch(built, lambda: state.step)
    steps = []
    for step in training.steps(built, stream, trial.spec, state):
        steps.append(step)
        if step.step == KILLED_AT:
            logits = trial.logits(built)  # in the order of the job: some methods project their weights as they are used
            weights.save(built, trial.folder / "adapter")
            checkpoint.save(trial.folder, built, stream, state, reference, keep=1)
            middle = _copied(built)
        if step.step >= STEPS:
            break
    for hook in hooks:
        hook.remove()
    moved = set(bookkeeping.moved_base_weights(built, reference))
    changed = _changed(built, reference)
    seconds = sorted(step.seconds for step in steps)
    return Course(
        start=start,
        start_logits=start_logits,
        losses=(_loss(start_logits, batch), _loss(logits, batch)),
        middle=middle,
        logits=logits,
        end={**_copied(built), **changed},
        gradients=gradients,
        moved=tuple(sorted(moved)),
        kept=tuple(sorted(changed.keys() - moved)),
        grouped=grouped,
        freed=tuple(name for name in start if _stays(built, name)),
        steps=tuple(steps),
        trainable=sum(tensor.numel() for tensor in start.values()),
        total=built.num_weights()["total"],
        seconds_per_step=seconds[len(seconds) // 2],
    )


def _stays(built: Built, name: str) -> bool:
    """Whether a trained tensor has its part in the output with the adapter switched off too.

    peft switches off the copies that it trains of modules, but not those beside virtual tokens.
    """
    if "modules_to_save" in name:
        return built.adapter is not None and bool(built.adapter.is_prompt_learning)
    return name in built.base_names


def _grouped(built: Built, state: training.State) -> dict[str, int]:
    held = [id(parameter) for group in state.optimizer.param_groups for parameter in group["params"]]
    return {name: held.count(id(parameter)) for name, parameter in built.trainable().items()}


def _watch(built: Built, step: Callable[[], int]) -> tuple[dict[str, tuple[set[int], set[int]]], list[Any]]:
    """Note for each trainable tensor the steps it gets a gradient in; the hooks are to be removed again."""
    found: dict[str, tuple[set[int], set[int]]] = {name: (set(), set()) for name in built.trainable()}

    def hook(name: str) -> Callable[[torch.Tensor], None]:
        def note(parameter: torch.Tensor) -> None:
            found[name][0].add(step())
            if parameter.grad is not None and bool(parameter.grad.any()):
                found[name][1].add(step())

        return note

    trainable: dict[str, Any] = dict(built.trainable())
    return found, [value.register_post_accumulate_grad_hook(hook(name)) for name, value in trainable.items()]
