"""Which way a training is split over its processes: what the settings ask for, and what does not go with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.parallel import zero
from peftlab.parallel.split import Split, require_elementwise
from peftlab.parallel.summing import Summing


def asked(spec: RunSpec) -> str | None:
    """The setting that asks for tensors to be divided, if one does."""
    if spec.launch.deepspeed is not None:
        return f"launch.deepspeed={spec.launch.deepspeed}"
    return f"launch.sharding={spec.launch.sharding}" if spec.launch.sharding is not None else None


def check(spec: RunSpec) -> None:
    """Look before anything is loaded whether the settings go together.

    Raises:
        UserError: They do not, deepspeed is missing, or its file is bad.
    """
    setting = asked(spec)
    if setting is None:
        return
    if spec.launch.sharding is not None and spec.launch.num_processes == 1:
        raise UserError(
            f"{setting} divides over several processes, and this is one",
            fix="start it with: torchrun --nproc-per-node 2 -m peftlab run ... launch.num_processes=2",
        )
    if spec.train.mixed_precision == "fp16":
        raise UserError(
            f"{setting}: train.mixed_precision = fp16 needs a scaled loss, which nobody looks after here",
            fix="set train.mixed_precision=bf16 or no",
        )
    weights = spec.launch.sharding is not None
    if spec.launch.deepspeed is not None:
        weights = zero.check(spec)["zero_optimization"]["stage"] == zero.WEIGHTS
    if weights and spec.model.compile:
        raise UserError(f"{setting}: model.compile was never tried on divided weights", fix="set model.compile=false")
    if weights and spec.quant.method is not None:
        raise UserError(
            f"{setting}: a quantised base (quant.method = {spec.quant.method}) cannot be divided",
            fix="use ZeRO stage 2, or leave launch.deepspeed and launch.sharding out",
        )


def start(
    model: nn.Module,
    make: Callable[[], torch.optim.Optimizer],
    spec: RunSpec,
    *,
    scaler: torch.amp.GradScaler,
) -> tuple[Split, Any]:
    """The split that the settings ask for, and the optimizer, whose groups have the learning rates.

    Args:
        model: As built, on its device; it is divided in place.
        make: Builds the optimizer on the model's trainable tensors, as they are when it is called.
        spec: The run.
        scaler: Of the loss, where nothing is divided.

    Raises:
        UserError: The settings do not go together, or the optimizer cannot be divided.
    """
    check(spec)
    split: Split
    if asked(spec) is None:
        optimizer = make()
        parameters = [one for one in model.parameters() if one.requires_grad]
        limit = spec.optim.max_grad_norm
        split = Summing(call=model, parameters=parameters, optimizer=optimizer, scaler=scaler, max_grad_norm=limit)
        return split, optimizer
    require_elementwise(make(), spec.optim.optimizer)
    if spec.launch.deepspeed is not None:
        split, optimizer = zero.start(model, make, spec)
    else:
        from peftlab.parallel import fsdp  # a second of imports that nobody else needs

        split, optimizer = fsdp.start(model, make, spec)
    return split, optimizer
