"""The step generator: forward, loss per label token, backward, clip, step. One loop for every method.

It yields after each optimizer step and never inside a context; who reads it decides when to validate, save or stop.
Accumulation and autocast are written out here, because the loss must be divided by the label tokens of the whole
step, over all its forward passes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from peftlab import measure
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.events import Step
from peftlab.loop import loss, optim
from peftlab.modelling import models, randomness
from peftlab.modelling.models import Built
from peftlab.parallel import processes, starting
from peftlab.parallel.split import Split
from peftlab.records.slot import ran_out_of_memory
from peftlab.rows.batching import Batch, StepRows, Stream, collate
from peftlab.rows.tokenise import TokenRow

_OWN_OBJECTIVE_TOLERANCE = 1e-4
_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Diverged(UserError):
    """The loss became NaN or infinite; the run is recorded as failed."""


@dataclass(kw_only=True)
class State:
    """Everything that moves from step to step besides the model's own tensors.

    Attributes:
        split: How passes and steps are shared with the other processes; it sums, clips and steps.
        total_steps: Optimizer steps of the whole budget.
        step: Optimizer steps done.
        own_objective: Whether the method adds a term of its own to a labelled loss; None before step 1.
        scaler: Loss scaler of fp16 AMP, else disabled.
        best: Best validation so far: `{"step": .., "score": ..}`; and how many validations had no gain.
    """

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    total_steps: int
    split: Split
    step: int = 0
    own_objective: bool | None = None
    best: dict[str, Any] = field(default_factory=dict)


def start(built: Built, spec: RunSpec, *, total_steps: int | None = None) -> State:
    """The state before step 1; the model is divided over the processes where the settings ask for it.

    Raises:
        UserError: The settings, or the method, do not go with that.
    """
    scaler = torch.amp.GradScaler(built.device.type, enabled=spec.train.mixed_precision == "fp16")
    total = total_steps or spec.train.max_steps
    assert total is not None, "a budget that is no number of steps is counted by whoever has the rows"
    adapter = built.adapter.to_dict() if built.adapter is not None else None

    def make() -> torch.optim.Optimizer:
        return optim.build(built.trainable(), spec.optim, model=built.model, adapter=adapter)

    _refuse_to_divide(built, spec)
    split, optimizer = starting.start(built.model, make, spec, scaler=scaler)
    return State(optimizer=optimizer, scaler=scaler, total_steps=total, split=split)


def _refuse_to_divide(built: Built, spec: RunSpec) -> None:
    """What works on whole weights or gradients between the passes finds none where they are divided."""
    setting = starting.asked(spec)
    if setting is not None and (_after_step(built) is not None or built.method.extra_loss is not None):
        raise UserError(
            f"{setting}: {spec.method} works on its weights or gradients outside of the forward pass",
            fix="leave launch.deepspeed and launch.sharding out: processes then sum whole gradients",
        )


def steps(built: Built, stream: Stream, spec: RunSpec, state: State) -> Iterator[Step]:
    """Train from `state.step` to `state.total_steps`, yielding after each step.

    Raises:
        Diverged: NaN or infinite loss.
    """
    after_step = _after_step(built)
    while state.step < state.total_steps:
        started = time.perf_counter()
        rows = next(stream)
        state.step += 1
        built.model.train()
        models.use_arithmetic(spec.model)
        randomness.reseed(spec.seed, "dropout", state.step, stream.rank)
        rate = optim.set_rate(state.optimizer, spec.optim, state.step, state.total_steps)
        undecided = state.own_objective is None
        with processes.together(), _on_few_bits(spec):
            sums = _accumulate(built, rows, spec, state)
        if undecided:
            _decide_together(state)
        if not math.isfinite(sums.loss + sums.method_loss):
            raise Diverged(
                f"the loss became {sums.loss} at step {state.step}",
                fix="lower optim.learning_rate, clip harder (optim.max_grad_norm) or use float32",
            )
        by_chance = False
        if state.step == 1 and rows.micro_batches and state.split.shows_gradients:
            by_chance = _check_gradients(built, rows, spec)
        with processes.together():
            norm = _update(state)
        # The norm is of all processes: one alone may have had no part.
        if state.step == 1 and norm == 0 and sums.label_tokens and not by_chance:
            raise UserError(
                "every gradient of step 1 is exactly zero: nothing that is trained has a part in the output",
                fix="on a quantised base take another method (peftlab list methods); else check the adapter's start",
            )
        if not math.isfinite(norm) and not state.scaler.is_enabled():
            raise Diverged(
                f"the gradient norm became {norm} at step {state.step}",
                fix="lower optim.learning_rate or use float32",
            )
        if after_step is not None:
            after_step(built.model, state.step)
        if state.split.shows_gradients:  # else they are not ours to drop
            state.optimizer.zero_grad(set_to_none=True)
        yield Step(
            step=state.step,
            loss=sums.loss if sums.label_tokens else math.nan,
            method_loss=sums.method_loss if state.own_objective else None,
            learning_rate=rate,
            grad_norm=norm,
            tokens=sums.tokens,
            label_tokens=sums.label_tokens,
            seconds=time.perf_counter() - started,
            memory_bytes=measure.current_memory_bytes(),
            allocated_bytes=measure.allocated_bytes(),
            epoch=rows.epoch,
            ends_epoch=rows.ends_epoch,
        )


@dataclass(kw_only=True)
class _Sums:
    loss: float = 0.0
    method_loss: float = 0.0
    tokens: int = 0
    label_tokens: int = 0


def _accumulate(built: Built, rows: StepRows, spec: RunSpec, state: State) -> _Sums:
    """Forward and backward over the step's micro-batches; gradients are of (sum of losses) / (the step's weight).

    The step's weight and its number of micro-batches are those of all processes, so that the sum of their gradients is
    what one process would have computed.
    """
    batches = [collate(micro, pad_id=built.pad_id, eos_weight=spec.data.eos_weight) for micro in rows.micro_batches]
    total_weight, num_batches = processes.summed(sum(batch.weight for batch in batches), len(batches))
    sums = _Sums()
    for number, batch in enumerate(batches, start=1):
        batch = batch.to(built.device)
        with _autocast(built, spec):
            outputs = forward(built, batch, labelled=state.own_objective is not False, call=state.split.call)
            found = loss.from_logits(outputs.logits, batch)
            own = _own_objective(built, outputs, batch, found, state)
            objective = found.total / max(total_weight, 1e-12)
            if own is not None:
                objective = objective + own / num_batches
        if objective.requires_grad or state.split.name is not None:  # else chance left every module out of this pass
            state.split.backward(objective, last=number == rows.most)
        sums.loss += float(found.total.detach()) / max(total_weight, 1e-12)
        sums.method_loss += float(own.detach()) / num_batches if own is not None else 0.0
        sums.tokens += batch.num_tokens
        sums.label_tokens += found.count
    if state.split.name is not None:
        _idle(built, rows, spec, state.split, done=len(batches))
    total = processes.summed(sums.loss, sums.method_loss, sums.tokens, sums.label_tokens)
    return _Sums(loss=total[0], method_loss=total[1], tokens=int(total[2]), label_tokens=int(total[3]))


def _idle(built: Built, rows: StepRows, spec: RunSpec, split: Split, *, done: int) -> None:
    """Passes that weigh nothing, for a process with fewer micro-batches: dividing wants as many from every one."""
    for number in range(done + 1, rows.most + 1):
        batch = collate([rows.filler], pad_id=built.pad_id).to(built.device)
        with _autocast(built, spec):
            objective = 0.0 * forward(built, batch, call=split.call).logits.sum()
        split.backward(objective, last=number == rows.most)


def checksum(built: Built) -> float:
    """One number that tells trained weights apart; equal on all processes of a launch."""
    return sum(float(parameter.detach().double().abs().sum()) for parameter in built.trainable().values())


def forward(built: Built, batch: Batch, *, labelled: bool = False, call: Callable[..., Any] | None = None) -> Any:
    """One forward pass, of the model or of what is called in its place.

    Unlabelled, only the logits that the loss reads are asked for, where the model can do so.
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.type_ids is not None:
        inputs["token_type_ids"] = batch.type_ids
    if labelled:
        inputs["labels"] = batch.classes if batch.classes is not None else batch.labels
    elif built.trims_logits and built.kind == "causal":
        # as indices, not as a number: a slice is not contiguous, and the head's product on one copies the whole head
        inputs["logits_to_keep"] = torch.arange(-batch.keep, 0, device=batch.input_ids.device)
    if built.kind == "causal":
        inputs["use_cache"] = False
    if built.method.forward_inputs is not None:
        inputs.update(built.method.forward_inputs(batch))
    return (call or built.model)(**inputs)


def _own_objective(built: Built, outputs: Any, batch: Batch, found: loss.LossSum, state: State) -> torch.Tensor | None:
    """The term that a method adds to the loss: its own function, or what its labelled loss has beyond ours.

    Looked for once, on the first batch of step 1; a difference that is not rounding belongs to the method.
    """
    if built.method.extra_loss is not None:
        state.own_objective = True
        term: torch.Tensor = built.method.extra_loss(built.model, state.step)
        return term
    if state.own_objective is False or found.count == 0:  # without labels the library's mean loss is 0 / 0
        return None
    # The task's own part is already in `found`; what is left of the labelled loss is the method's.
    ours = loss.as_the_library(outputs.logits, batch)
    own: torch.Tensor = outputs.loss - ours
    if state.own_objective is None:
        difference, size = abs(float(own.detach())), abs(float(ours.detach()))
        state.own_objective = difference > _OWN_OBJECTIVE_TOLERANCE * max(1.0, size)
    return own if state.own_objective else None


def _decide_together(state: State) -> None:
    """A process without rows in the first step goes by what the others found."""
    found, decided = processes.summed(state.own_objective is True, state.own_objective is not None)
    state.own_objective = found > 0 if decided else None


def _autocast(built: Built, spec: RunSpec) -> contextlib.AbstractContextManager[Any]:
    if spec.train.mixed_precision == "no":
        return contextlib.nullcontext()
    return torch.autocast(built.device.type, dtype=_AMP_DTYPES[spec.train.mixed_precision])


def try_out(built: Built, rows: Sequence[TokenRow], spec: RunSpec) -> None:
    """On a quantised base, one forward pass: whether the method can work there shows before time is spent on it.

    Raises:
        UserError: It cannot.
    """
    if spec.quant.method is None:
        return
    built.model.eval()
    with _on_few_bits(spec), torch.no_grad():
        forward(built, collate(rows[:1], pad_id=built.pad_id).to(built.device))


@contextlib.contextmanager
def _on_few_bits(spec: RunSpec) -> Iterator[None]:
    """What a library says of a base that a method cannot work on; only by values, if the base is not quantised.

    Raises:
        UserError: It does.
    """
    try:
        yield
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        refused = isinstance(error, ValueError) and spec.adapter is not None
        if ran_out_of_memory(error) or (spec.quant.method is None and not refused):
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if spec.quant.method is None:
            raise UserError(
                f"this adapter cannot be trained on this model: {reason}",
                fix="look at adapter_config.json: two of its settings may not go together",
            ) from error
        raise UserError(
            f"quant.method = {spec.quant.method}: this method cannot be trained on such a base: {reason}",
            fix="peftlab list methods says which methods can; or take another quant.method such as bnb-nf4, or null",
        ) from error


def _check_gradients(built: Built, rows: StepRows, spec: RunSpec) -> bool:
    """Whether tensors got no gradient by chance: their modules were dropped in this step, and take part otherwise.

    Raises:
        UserError: Some are in no pass, not even in one that drops nothing.
    """
    missing = {name: parameter for name, parameter in built.trainable().items() if parameter.grad is None}
    if not missing:
        return False
    built.model.eval()
    with _autocast(built, spec):
        logits = forward(built, collate(rows.micro_batches[0], pad_id=built.pad_id).to(built.device)).logits
    reached: Sequence[torch.Tensor | None] = [None] * len(missing)
    if logits.requires_grad:
        reached = torch.autograd.grad(logits.float().sum(), list(missing.values()), allow_unused=True)
    built.model.train()
    lost = [name for name, gradient in zip(missing, reached, strict=True) if gradient is None]
    if lost:
        raise UserError(
            f"{len(lost)} trainable tensors get no gradient, the first is {lost[0]}",
            fix="they are not part of the forward pass: check target_modules and modules_to_save",
        )
    return True


def _update(state: State) -> float:
    """Sum over processes, clip and step; returns the gradient norm before clipping."""
    return state.split.step()


def _after_step(built: Built) -> Callable[[Any, int], None] | None:
    """What a method does after each step: its own, or by peft's convention `update_and_allocate(step)` of the tuner."""
    hook = getattr(getattr(built.model, "base_model", None), "update_and_allocate", None)
    if built.method.after_step is not None or hook is None:
        return built.method.after_step
    return lambda model, step: hook(step)
