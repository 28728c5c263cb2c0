"""HiRA as S3 (docs/moving.md) writes it, with its ablations: how A and B start, which train, what they multiply.

    W = W0 + R o (B A)

A [r, in] and B [out, r]; R is W0, or with `rand_R` a fixed matrix of uniform numbers in [0, 1), which takes the
knowledge of W0 out of the update. No factor and no dropout, as there. peft's HIRA is the method itself (R = W0, both
trained).

Huang et al. 2025, HiRA (https://openreview.net/forum?id=TwJrTz9cRS). S3 does not say in what range its uniform numbers
lie: [0, 1) is a guess.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from peftlab import own
from peftlab.config.settings import setting
from peftlab.protocols import Method

Start = Literal["kaiming", "zero"]


class HadamardConfig(own.OwnConfig):
    """Defaults are S3's flags."""

    r: int = setting(16, "rank of the product", gt=0)
    target_modules: str | list[str] | None = setting(
        None, "last parts of layer names, a regular expression, or all-linear; null: as for LoRA"
    )
    init_a: Start = setting("kaiming", "start of A: the first word of S3's init_ab")
    init_b: Start = setting("zero", "start of B: the second")
    train_a: bool = setting(True, "train A: the first letter of S3's train_ab")
    train_b: bool = setting(True, "train B: the second")
    rand_R: bool = setting(False, "multiply fixed random numbers in the place of W0")


class HadamardLinear(own.Layer):
    """One weight with its product."""

    R: torch.Tensor | None

    def __init__(self, base_layer: nn.Linear, config: HadamardConfig) -> None:
        super().__init__(base_layer)
        weight = base_layer.weight
        self.A = nn.Parameter(_start((config.r, base_layer.in_features), config.init_a, weight.device))
        self.B = nn.Parameter(_start((base_layer.out_features, config.r), config.init_b, weight.device))
        self.A.requires_grad_(config.train_a)
        self.B.requires_grad_(config.train_b)
        self.register_buffer("R", torch.rand(weight.shape, device=weight.device) if config.rand_R else None)

    def update(self) -> torch.Tensor:
        """R o (B A)."""
        return (self.base_layer.weight if self.R is None else self.R) * (self.B @ self.A)


def _start(shape: tuple[int, int], how: Start, device: torch.device) -> torch.Tensor:
    tensor = torch.zeros(shape, device=device)
    return nn.init.kaiming_uniform_(tensor, a=math.sqrt(5)) if how == "kaiming" else tensor


def wrap(base: Any, config: HadamardConfig, make: Any = None) -> Any:
    """Put the product on every target layer of the base."""
    own.put_on(base, config.target_modules, lambda layer: HadamardLinear(layer, config), "HADAMARD")
    own.free(base, own.head(base, config))
    return base


PLUGIN = Method(config=HadamardConfig, wrap=wrap)
