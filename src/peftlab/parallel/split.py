"""What a training leaves to whoever splits it over processes: the passes, the step, and who holds which tensors.

One protocol, three ways: `summing.py` (every process holds everything), `zero.py` (DeepSpeed), `fsdp.py` (torch). The
loop knows the protocol only. Also what every way that divides tensors needs: hooks that are lifted while weights are
whole, and a look whether an optimizer bears having its tensors cut.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from peftlab.errors import UserError


class Split(Protocol):
    """How one training is split over the processes of its launch.

    Attributes:
        name: What divides the optimizer's state, as a checkpoint says it; None if every process holds everything.
        divides_weights: Outside `whole`, no process holds whole weights.
        shows_gradients: `Parameter.grad` is there between the last backward pass and the step.
        call: What a training batch is given to, in the place of the model.
    """

    name: str | None
    divides_weights: bool
    shows_gradients: bool
    call: Any

    def backward(self, objective: torch.Tensor, *, last: bool) -> None:
        """Add the gradient of a share of the step's loss; `last` of the step, in this process."""

    def step(self) -> float:
        """Sum over processes, clip and step; returns the gradient norm before clipping."""

    def whole(self, *, write: bool = False) -> AbstractContextManager[None]:
        """All processes enter: inside, weights are whole and the model is a plain one, in each of them.

        Passes inside are each process's own business. With `write`, what the model holds at the end is kept, else not.
        """

    def part(self) -> dict[str, Any]:
        """This process's part of the optimizer's state, as plain data and tensors; empty without a `name`."""

    def take_part(self, part: Mapping[str, Any]) -> None:
        """Go on from what `part` gave to this process of as many."""


@contextmanager
def without_hooks(model: nn.Module, package: str) -> Iterator[None]:
    """The model without the forward hooks that come from a package; they are back afterwards, in their order.

    Such hooks gather weights together with the other processes, and an evaluation has not the same passes everywhere.
    """
    kept = []
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            kept.append((hooks, dict(hooks)))
            for number, hook in list(hooks.items()):
                if (getattr(hook, "__module__", None) or "").startswith(package):
                    del hooks[number]
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)


def require_elementwise(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Refuse an optimizer that looks at more than one element at a time: cut in parts, it would do something else.

    Two steps on a small matrix are compared with the same steps on its rows, cut apart and flat.

    Raises:
        UserError: They differ, or the optimizer cannot be tried alone.
    """
    weights = torch.linspace(-1, 1, 12).reshape(4, 3)
    try:
        whole, *_ = _tried(optimizer, [weights])
        parts = _tried(optimizer, [weights[:2].flatten(), weights[2:].flatten()])
        same = torch.allclose(whole.flatten(), torch.cat(parts))
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, NotImplementedError, AssertionError):
        same = False
    if not same:
        raise UserError(
            f"optim.optimizer = {name} cannot be divided: it looks at whole tensors, or cannot be tried on parts",
            fix="take one that goes by elements (AdamW, SGD, ...), or leave launch.deepspeed and launch.sharding out",
        )


def require_precision(trained: Mapping[str, nn.Parameter], setting: str, wanted: torch.dtype | None = None) -> None:
    """Refuse trained tensors that are cut together and differ in precision, or have another than is `wanted`.

    Raises:
        UserError: There are such.
    """
    found = sorted({str(one.dtype).removeprefix("torch.") for one in trained.values()})
    if wanted is None and len(found) > 1:
        raise UserError(
            f"{setting}: tensors of {' and '.join(found)} are trained side by side, and cannot be divided together",
            fix="give them one precision: model.dtype=float32 with train.mixed_precision=bf16",
        )
    other = [name for name, one in trained.items() if wanted is not None and one.dtype != wanted]
    if other:
        raise UserError(
            f"{setting}: {len(other)} trained tensors are {trained[other[0]].dtype}, the first is {other[0]}: it would "
            f"step copies of them in {wanted}, and the result would be another one",
            fix="set model.dtype=float32 with train.mixed_precision=bf16, or use launch.sharding=fsdp2",
        )


def _tried(optimizer: torch.optim.Optimizer, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors after two steps of a copy of the optimizer that has no state yet."""
    parameters = [nn.Parameter(tensor.clone()) for tensor in tensors]
    trial = copy.copy(optimizer)
    trial.state = defaultdict(dict)
    trial.param_groups = [{**optimizer.param_groups[0], "params": parameters, "lr": 0.1}]
    for factor in (1.0, -0.3):
        for parameter in parameters:
            parameter.grad = factor * parameter.detach() ** 2 + 0.01
        trial.step()
    return [parameter.detach() for parameter in parameters]


def plain_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """An optimizer's groups without their parameters."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def placed(value: Any, group: Mapping[str, Any], device: torch.device) -> Any:
    """A saved value of an optimizer's state where the optimizer wants it: counts stay on the CPU, as torch has them."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.dim() == 0 and not (group.get("capturable") or group.get("fused")):
        return value
    return value.to(device)
