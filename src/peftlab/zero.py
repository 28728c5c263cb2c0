"""DeepSpeed's ZeRO in the place of the plain sum of gradients: each process keeps a part of the optimizer's state.

The loop stays ours. The engine gets each micro-batch's share of the step's loss, and clips and steps at its end. Only
stages 1 and 2 are taken: with stage 3 no process holds whole weights, which validation and saving rely on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from peftlab import processes
from peftlab.errors import UserError
from peftlab.settings import read_json
from peftlab.spec import RunSpec

STAGES = (1, 2)
_SECTIONS = {
    *("zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    *("gradient_clipping", "steps_per_print", "wall_clock_breakdown", "communication_data_type"),
}
"""Sections of a DeepSpeed config that do not change a result, or that are compared with the experiment's settings."""


class Zero:
    """One training's engine."""

    def __init__(self, engine: Any, world_size: int) -> None:
        self._engine = engine
        self._world_size = world_size

    def backward(self, objective: torch.Tensor, *, last: bool) -> None:
        """Add the gradient of a share of the step's loss; the engine averages over processes, we sum."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(objective * self._world_size, scale_wrt_gas=False)

    def step(self) -> float:
        """Clip, step, and forget the gradients; returns their norm before clipping."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0)


def start(model: torch.nn.Module, optimizer: torch.optim.Optimizer, spec: RunSpec) -> Zero | None:
    """The engine that `launch.deepspeed` asks for, or None.

    Raises:
        UserError: deepspeed is not installed, or its file asks for what is not supported.
    """
    if spec.launch.deepspeed is None:
        return None
    config = _config(Path(spec.launch.deepspeed), spec)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError:
        raise UserError(
            "launch.deepspeed is set, but deepspeed is not installed", fix="pip install 'peftlab[deepspeed]'"
        ) from None
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return Zero(engine, processes.world().size)


def _config(path: Path, spec: RunSpec) -> dict[str, Any]:
    """DeepSpeed's own file, with what our settings already say in the place of its `auto`."""
    if not path.is_file():
        raise UserError(f"launch.deepspeed: no such file: {path}", fix="name a DeepSpeed config (JSON)")
    config = read_json(path)
    strange = sorted(set(config) - _SECTIONS)
    if strange:
        raise UserError(
            f"{path}: {', '.join(strange)}: only what leaves the result as it is may stand there",
            fix=f"set them in the experiment; sections taken: {', '.join(sorted(_SECTIONS))}",
        )
    if not isinstance(config.get("zero_optimization", {}), dict):
        raise UserError(f"{path}: 'zero_optimization' must be an object", fix='write {"stage": 2}')
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage not in STAGES:
        raise UserError(
            f"{path}: zero_optimization.stage = {stage} is not supported here",
            fix="use stage 1 or 2; with stage 3 no process holds the whole weights that are validated and saved",
        )
    ours = {
        "train_micro_batch_size_per_gpu": spec.batch.per_device_train_batch_size,
        "gradient_accumulation_steps": spec.batch.gradient_accumulation_steps,
        "gradient_clipping": spec.optim.max_grad_norm,
    }
    for name, value in ours.items():
        if config.get(name, "auto") not in ("auto", value):
            raise UserError(
                f"{path}: {name} = {config[name]}, but the experiment says {value}",
                fix=f'write "{name}": "auto", and set it in the experiment',
            )
    config.pop("train_batch_size", None)
    return {**config, **ours, "zero_allow_untested_optimizer": True}
