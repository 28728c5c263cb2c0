"""Every process holds everything; gradients are summed after the last backward pass. Also the way of one process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peftlab.parallel import processes


@dataclass(kw_only=True)
class Summing:
    """`Split` without dividing anything.

    Attributes:
        max_grad_norm: Gradients are clipped to this norm; 0: not.
    """

    call: Any
    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    max_grad_norm: float
    name: str | None = None
    divides_weights: bool = False
    shows_gradients: bool = True

    def backward(self, objective: torch.Tensor, *, last: bool) -> None:
        """See `Split`."""
        self.scaler.scale(objective).backward()  # type: ignore[no-untyped-call]

    def step(self) -> float:
        """See `Split`."""
        processes.sum_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm or math.inf))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    @contextmanager
    def whole(self, *, write: bool = False) -> Iterator[None]:
        """See `Split`: they are whole anyway."""
        yield

    def part(self) -> dict[str, Any]:
        """See `Split`."""
        return {}

    def take_part(self, part: Mapping[str, Any]) -> None:
        """See `Split`."""
        raise AssertionError("nothing is divided")
