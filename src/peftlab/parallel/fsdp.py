"""torch's FSDP2 (`fully_shard`): each process keeps a part of the weights, the gradients and the optimizer's state.

A layer's weights are gathered for its passes and freed after them. Gradients are summed, not averaged: the loss is
divided by the step's label tokens already. Loads no model: every process loads the whole one before it is divided.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from peftlab.config.spec import RunSpec
from peftlab.parallel import processes
from peftlab.parallel.split import placed, plain_groups, require_precision, without_hooks

_LOCAL = "local"
"""Key of a tensor that is a process's part of a divided one."""


class FullyShard:
    """One training's divided model; a `Split`."""

    name: str | None = "fsdp2"
    divides_weights = True
    shows_gradients = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, max_grad_norm: float) -> None:
        self.call: Callable[..., Any] = model
        self._model = model
        self._optimizer = optimizer
        self._parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self._max_grad_norm = max_grad_norm

    def backward(self, objective: torch.Tensor, *, last: bool) -> None:
        """See `Split`; the hooks sum over processes, after every pass."""
        objective.backward()  # type: ignore[no-untyped-call]

    def step(self) -> float:
        """See `Split`; the norm is that of the whole gradient."""
        norm = nn.utils.clip_grad_norm_(list(self._parameters.values()), self._max_grad_norm or math.inf)
        self._optimizer.step()
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    @contextmanager
    def whole(self, *, write: bool = False) -> Iterator[None]:
        """See `Split`: plain tensors stand in the model in the place of the divided ones."""
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        places = [
            (module, name, parameter)
            for module in self._model.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if isinstance(parameter, DTensor)
        ]
        plain: dict[int, nn.Parameter] = {}
        for module, name, parameter in places:  # tied weights stay tied
            if id(parameter) not in plain:
                plain[id(parameter)] = _gathered(parameter)
            setattr(module, name, plain[id(parameter)])
        try:
            with without_hooks(self._model, "torch.distributed.fsdp"):
                yield
        finally:
            for module, name, parameter in places:
                if write:
                    _put(plain[id(parameter)], parameter)
                setattr(module, name, parameter)

    def part(self) -> dict[str, Any]:
        """See `Split`."""
        states = {
            name: {key: _local(value) for key, value in self._optimizer.state[parameter].items()}
            for name, parameter in self._parameters.items()
            if parameter in self._optimizer.state
        }
        return {"state": states, "groups": plain_groups(self._optimizer)}

    def take_part(self, part: Mapping[str, Any]) -> None:
        """See `Split`."""
        for group, saved in zip(self._optimizer.param_groups, part["groups"], strict=True):
            group.update(saved)
        for name, state in part["state"].items():
            parameter: Any = self._parameters[name]
            group = self._optimizer.param_groups[0]
            self._optimizer.state[parameter] = {
                key: _divided(value[_LOCAL], parameter)
                if isinstance(value, dict)
                else placed(value, group, parameter.device)
                for key, value in state.items()
            }


def start(model: nn.Module, make: Callable[[], torch.optim.Optimizer], spec: RunSpec) -> tuple[FullyShard, Any]:
    """The model divided layer by layer, and the optimizer on its parts.

    Raises:
        UserError: Tensors of several precisions are trained in one layer, or outside of all layers.
    """
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    mesh = init_device_mesh(device, (processes.world().size,))
    for module in (*_layers(model), model):
        own = {name: one for name, one in module.named_parameters() if not isinstance(one, DTensor)}
        trained = {name: one for name, one in own.items() if one.requires_grad}
        require_precision(trained, f"launch.sharding={spec.launch.sharding}")
        fully_shard(module, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo sums, and knows no sum with a factor
    optimizer = make()
    return FullyShard(model, optimizer, max_grad_norm=spec.optim.max_grad_norm), optimizer


def _layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers, by the classes that the model says must not be cut; the innermost first.

    A class that occurs once (embeddings) stays with the rest: its weights may be tied to the head's.
    """
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in kinds]
    counts = Counter(type(module).__name__ for module in found)
    return [module for module in reversed(found) if counts[type(module).__name__] > 1]


def _gathered(divided: DTensor) -> nn.Parameter:
    """The whole tensor, in every process."""
    with processes.together(), torch.no_grad():
        return nn.Parameter(divided.full_tensor(), requires_grad=divided.requires_grad)


def _put(plain: torch.Tensor, divided: DTensor) -> None:
    """Cut a whole tensor as another one is cut, and copy this process's part; no process asks another."""
    cut = distribute_tensor(plain.detach(), divided.device_mesh, divided.placements, src_data_rank=None)
    with torch.no_grad():
        divided.to_local().copy_(cut.to_local())


def _local(value: Any) -> Any:
    return {_LOCAL: value.to_local()} if isinstance(value, DTensor) else value


def _divided(part: torch.Tensor, like: DTensor) -> DTensor:
    return DTensor.from_local(
        part.to(like.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
