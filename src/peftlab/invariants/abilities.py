"""What a method can do besides: save memory by gradient checkpointing, generate, write its own loss term."""

from __future__ import annotations

import torch

from peftlab.config.groups import GenerationSettings
from peftlab.errors import UserError
from peftlab.invariants.afterwards import REFUSALS
from peftlab.invariants.findings import Finding, compared, reason_of, said
from peftlab.invariants.starting import difference, worst
from peftlab.invariants.trial import Trial
from peftlab.loop import loss, training
from peftlab.protocols import Prompt, find
from peftlab.rows.batching import collate

_FEW, _NEW_TOKENS = 2, 3
"""Rows and tokens that are enough to see it; more would take minutes on a real model."""


def own_loss(trial: Trial) -> Finding:
    """The term that a method adds to the loss, if it does."""
    term = trial.course.steps[0].method_loss
    if term is None:
        return said("own loss", "exempt", "the method adds no term to the loss")
    text = f"the method adds {term:.4g} to a loss of {trial.course.steps[0].loss:.4g} at step 1"
    return said("own loss", "stated", f"{text}: it is trained, and told apart")


def checkpointing(trial: Trial) -> Finding:
    """Gradient checkpointing gives the gradients that it gives without, or is refused before training."""
    name = "gradient checkpointing"
    spec = trial.spec.model_copy(update={"model": trial.spec.model.model_copy(update={"gradient_checkpointing": True})})
    other = Trial(spec=spec, rows=trial.rows, folder=trial.folder, pristine=trial.pristine)
    try:
        plain, saving = _gradients(trial), _gradients(other)
    except (*REFUSALS, torch.utils.checkpoint.CheckpointError) as error:
        said_by_us = isinstance(error, UserError)
        text = error.message if isinstance(error, UserError) else reason_of(error)
        return said(name, "refused" if said_by_us else "broken", text, fix=None if said_by_us else "leave it off")
    fix = "set model.gradient_checkpointing=false"
    if plain.keys() != saving.keys():
        odd = sorted(plain.keys() ^ saving.keys())[0]
        return said(name, "broken", f"{odd} gets a gradient with gradient checkpointing or without, not both", fix=fix)
    # each tensor against its own largest gradient: a new head's are a thousand times an adapter's
    figure = worst(_share(plain[key], saving[key]) for key in plain)
    return compared(name, figure, trial.rounding, what="gradients with gradient checkpointing, as a share", fix=fix)


def _share(one: torch.Tensor, other: torch.Tensor) -> float:
    apart = difference(one, other)
    return apart / max(float(one.abs().max()), torch.finfo(torch.float32).tiny) if apart else 0.0


def _gradients(trial: Trial) -> dict[str, torch.Tensor]:
    ready = trial.prepare()
    built = ready.built
    batch = collate(trial.token_rows[:_FEW], pad_id=built.pad_id).to(built.device)
    built.model.train()
    torch.manual_seed(0)
    found = loss.from_logits(training.forward(built, batch).logits, batch)
    found.total.backward()  # type: ignore[no-untyped-call]
    return {key: value.grad.clone() for key, value in built.trainable().items() if value.grad is not None}


def generation(trial: Trial) -> Finding:
    """It generates: in a batch what it generates alone."""
    name = "generates"
    if trial.spec.task.has_head:
        return said(name, "exempt", "a classifier generates nothing")
    built = trial.reloaded
    rows = [row.ids[: max(row.labels_from, 1)] for row in trial.token_rows[:_FEW]]
    shortest = min(map(len, rows))
    ids = [row[:shortest] if built.equal_lengths else row for row in rows]
    prompts = [Prompt(token_ids=tuple(row), max_new_tokens=_NEW_TOKENS) for row in ids]
    options = {"do_sample": False, "stop": (), "pad_id": built.pad_id, "num_beams": 1}
    options |= {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    session = find("engines", GenerationSettings().engine).open(built)  # of the weights that are here
    try:
        together = session.generate(prompts, options)
        alone = [session.generate([prompt], options)[0] for prompt in prompts]
    except REFUSALS as error:
        return said(name, "broken", f"it cannot generate: {reason_of(error)}", fix="score it by choice or likelihood")
    finally:
        session.close()
    unlike = sum(one.token_ids != other.token_ids for one, other in zip(together, alone, strict=True))
    if unlike:
        return said(
            name, "stated", f"it generates; {unlike} of {len(prompts)} answers differ from those in a batch of one"
        )
    return said(name, "exact", "it generates, in a batch as alone")
