"""DeepSpeed's ZeRO in the place of the plain sum of gradients: each process keeps a part of the optimizer's state.

Stages 1 and 2 leave the weights whole; with stage 3 each process keeps a part of them too, and they are gathered where
a validation, a checkpoint or the result needs them. The loop stays ours: the engine gets each micro-batch's share of
the step's loss, and clips and steps at its end. Loads no model: every process loads the whole one, which is then cut.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftlab.config.settings import read_json
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.parallel import processes
from peftlab.parallel.split import placed, plain_groups, require_precision, without_hooks

STAGES = (1, 2, 3)
WEIGHTS = 3
"""The stage that divides the weights."""

_SECTIONS = {
    *("zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    *("gradient_clipping", "steps_per_print", "wall_clock_breakdown"),
}
"""Sections of a DeepSpeed config that do not change a result, or that are compared with the experiment's settings."""

_CHANGING = ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights")
"""Settings of `zero_optimization` that round what is sent."""


class Zero:
    """One training's engine; a `Split`."""

    shows_gradients = False

    def __init__(self, engine: Any, *, stage: int, world_size: int) -> None:
        self.name: str | None = f"zero-{stage}"
        self.divides_weights = stage == WEIGHTS
        self.call: Callable[..., Any] = engine
        self._engine = engine
        self._world_size = world_size

    def backward(self, objective: torch.Tensor, *, last: bool) -> None:
        """See `Split`; the engine averages over processes, we sum."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(objective * self._world_size, scale_wrt_gas=False)

    def step(self) -> float:
        """See `Split`."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0)

    @contextmanager
    def whole(self, *, write: bool = False) -> Iterator[None]:
        """See `Split`; what is written is what the leader's model holds."""
        if not self.divides_weights:
            yield
            return
        import deepspeed

        model = self._engine.module
        gathered = deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0 if write else None)
        with processes.together(), gathered, without_hooks(model, "deepspeed."):
            yield

    def part(self) -> dict[str, Any]:
        """See `Split`: the weights that this process steps, in the optimizer's precision, and its state of each."""
        inner = self._engine.optimizer.optimizer
        return {
            "weights": self._stepped(),
            "state": [dict(inner.state.get(weights, {})) for weights in self._stepped()],
            "groups": plain_groups(inner),
        }

    def take_part(self, part: Mapping[str, Any]) -> None:
        """See `Split`."""
        inner = self._engine.optimizer.optimizer
        for group, saved in zip(inner.param_groups, part["groups"], strict=True):
            group.update(saved)
        for weights, saved, state in zip(self._stepped(), part["weights"], part["state"], strict=True):
            weights.data.copy_(saved)
            inner.state[weights] = {
                key: placed(value, inner.param_groups[0], weights.device) for key, value in state.items()
            }

    def _stepped(self) -> list[torch.Tensor]:
        """The flat tensors that the optimizer of this process steps."""
        optimizer = self._engine.optimizer
        found = optimizer.fp32_partitioned_groups_flat if self.divides_weights else None
        return list(found if found is not None else optimizer.single_partition_of_fp32_groups)


def start(model: nn.Module, make: Callable[[], torch.optim.Optimizer], spec: RunSpec) -> tuple[Zero, Any]:
    """The engine that `launch.deepspeed` asks for, and the optimizer in it.

    Raises:
        UserError: deepspeed is not installed, its file asks for what is not supported, or it takes another optimizer or
            precision.
    """
    config = check(spec)
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    require_precision(trained, f"launch.deepspeed={spec.launch.deepspeed}", torch.float32)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    optimizer = make()
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if engine.optimizer.optimizer is not optimizer:
        raise UserError(
            f"optim.optimizer = {spec.optim.optimizer}: DeepSpeed puts one of its own in its place",
            fix="take another (AdamW, SGD, ...), or leave launch.deepspeed out",
        )
    stage = config["zero_optimization"]["stage"]
    return Zero(engine, stage=stage, world_size=processes.world().size), optimizer


def check(spec: RunSpec) -> dict[str, Any]:
    """DeepSpeed's own file, with what our settings already say in the place of its `auto`.

    Raises:
        UserError: deepspeed is not installed, or its file asks for what is not supported.
    """
    assert spec.launch.deepspeed is not None
    path = Path(spec.launch.deepspeed)
    if not path.is_file():
        raise UserError(f"launch.deepspeed: no such file: {path}", fix="name a DeepSpeed config (JSON)")
    config = read_json(path)
    strange = sorted(set(config) - _SECTIONS)
    if strange:
        raise UserError(
            f"{path}: {', '.join(strange)}: only what leaves the result as it is may stand there",
            fix=f"set them in the experiment; sections taken: {', '.join(sorted(_SECTIONS))}",
        )
    ours = {
        "train_micro_batch_size_per_gpu": spec.batch.per_device_train_batch_size,
        "gradient_accumulation_steps": spec.batch.gradient_accumulation_steps,
        "gradient_clipping": spec.optim.max_grad_norm,
    }
    for name, value in {**ours, "train_batch_size": spec.global_batch_size}.items():
        if config.get(name, "auto") not in ("auto", value):
            raise UserError(
                f"{path}: {name} = {config[name]}, but the experiment says {value}",
                fix=f'write "{name}": "auto", and set it in the experiment',
            )
    config.pop("train_batch_size", None)
    zero = _zero_section(config.get("zero_optimization", {}), path)
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "launch.deepspeed is set, but deepspeed is not installed", fix="pip install 'peftlab[deepspeed]'"
        )
    any_optimizer = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return {**config, **ours, **_precision(spec), **any_optimizer, "zero_optimization": zero}


def _zero_section(zero: Any, path: Path) -> dict[str, Any]:
    """The section that says what is divided; an `auto` in it is DeepSpeed's default."""
    if not isinstance(zero, dict):
        raise UserError(f"{path}: 'zero_optimization' must be an object", fix='write {"stage": 2}')
    if zero.get("stage", 0) not in STAGES:
        raise UserError(
            f"{path}: zero_optimization.stage = {zero.get('stage', 0)} is not supported here", fix="use stage 1, 2 or 3"
        )
    rounding = [name for name in _CHANGING if zero.get(name)]
    if rounding:
        raise UserError(f"{path}: {', '.join(rounding)} changes the result", fix="leave it out")
    for name in ("offload_optimizer", "offload_param"):
        if isinstance(zero.get(name), dict) and zero[name].get("device") == "nvme":
            raise UserError(f"{path}: {name}: nvme: checkpoints cannot read it there", fix="offload to cpu, or not")
    return {name: value for name, value in zero.items() if value != "auto"}


def _precision(spec: RunSpec) -> dict[str, Any]:
    """Autocast as the experiment has it: the engine switches an outer one off. Nothing is sent in less precision."""
    if spec.train.mixed_precision != "bf16":
        return {}
    return {"torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}}
