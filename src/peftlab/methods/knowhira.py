"""KnowHiRA: HiRA's product with the weights, where the singular values of each weight say what may change.

    W  = W0 + alpha * W0 o (A G B),    G = diag(sigma o sigmoid(g))                                       (eq. 1, 2)
    L  = L_task + lambda * sum over layers of ( |A^T A - I|^2 + |B B^T - I|^2 )                           (eq. 3, 4)

o is the elementwise product, A [out, r] and B [r, in] and g [r] are trained, and sigma holds the r largest singular
values of W0 divided by the largest; norms are Frobenius norms. A starts as Kaiming's uniform numbers scaled by sigma, B
at zero (so the model starts unchanged), g at zero (sigmoid 0.5).

Cui, Pan and Yang 2025, KnowHiRA (repository NLP-25Spring-FDU), from HiRA (https://openreview.net/forum?id=TwJrTz9cRS)
and KaSA (https://arxiv.org/abs/2412.06071). Where the paper is silent its code decides: alpha multiplies the product,
singular values beyond `svd_rank_ratio` of them count as one, A's scale is 0.1 + 0.9 sigma times `spectrum_init_scale`
(at most 0.1), g starts at zero ("small negative values" in the paper). Its code parts from the paper in the penalty
(other weights for A and B, both divided by r^2) and transposes the product, which fits square weights only; here both
are the paper's. Dropout is built there and never applied: there is none here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from peftlab import own
from peftlab.config.settings import setting
from peftlab.protocols import Method

_LEAST_SCALE, _MOST_SCALE = 0.1, 0.1


class KnowHiraConfig(own.OwnConfig):
    """Defaults are those of the method's own README."""

    r: int = setting(32, "rank of the product", gt=0)
    target_modules: str | list[str] | None = setting(
        None, "last parts of layer names, a regular expression, or all-linear; null: as for LoRA"
    )
    knowledge_alpha: float = setting(0.6, "factor of the update")
    ortho_lambda: float = setting(1e-4, "weight of the penalty that keeps A and B orthogonal", ge=0)
    svd_rank_ratio: float = setting(0.85, "share of the singular values that gate; the rest count as one", gt=0, le=1)
    spectrum_init_scale: float = setting(0.1, "scale of A's start, at most 0.1 is used", ge=0)
    adaptive_gating: bool = setting(True, "train the gates; without, sigma alone gates")


class KnowHiraLinear(own.Layer):
    """One weight with its gated product."""

    sigma: torch.Tensor

    def __init__(self, base_layer: nn.Linear, config: KnowHiraConfig) -> None:
        super().__init__(base_layer)
        out, width, r, device = base_layer.out_features, base_layer.in_features, config.r, base_layer.weight.device
        self.alpha, self.ortho_lambda = config.knowledge_alpha, config.ortho_lambda
        self.register_buffer("sigma", _sigma(base_layer.weight, r, config.svd_rank_ratio))
        start = torch.empty(r, out, device=device)  # Kaiming's bound counts the columns
        nn.init.kaiming_uniform_(start, a=math.sqrt(5))
        scale = (_LEAST_SCALE + (1 - _LEAST_SCALE) * self.sigma) * min(_MOST_SCALE, config.spectrum_init_scale)
        self.A = nn.Parameter(start.T.contiguous() * scale)
        self.B = nn.Parameter(torch.zeros(r, width, device=device))
        self.gate = nn.Parameter(torch.zeros(r, device=device)) if config.adaptive_gating else None

    def update(self) -> torch.Tensor:
        """alpha * W0 o (A G B)."""
        gates = self.sigma if self.gate is None else self.sigma * torch.sigmoid(self.gate)
        return self.base_layer.weight * (self.alpha * ((self.A * gates) @ self.B))

    def penalty(self) -> torch.Tensor:
        """|A^T A - I|^2 + |B B^T - I|^2, times lambda."""
        identity = torch.eye(len(self.B), device=self.B.device, dtype=self.B.dtype)
        both = (self.A.T @ self.A - identity).square().sum() + (self.B @ self.B.T - identity).square().sum()
        return self.ortho_lambda * both


def _sigma(weight: torch.Tensor, r: int, share: float) -> torch.Tensor:
    """The r largest singular values over the largest; one where there are none, or none that gate."""
    found = torch.ones(r, device=weight.device)
    if weight.is_meta:
        return found
    values = torch.linalg.svdvals(weight.detach().float())
    kept = min(r, int(len(values) * share))
    found[:kept] = values[:kept] / values[0].clamp_min(torch.finfo(torch.float32).tiny)
    return found


def wrap(base: Any, config: KnowHiraConfig, make: Any = None) -> Any:
    """Put the product on every target layer of the base."""
    own.put_on(base, config.target_modules, lambda layer: KnowHiraLinear(layer, config), "KnowHiRA")
    own.free(base, own.head(base, config))
    return base


def extra_loss(model: Any, step: int) -> torch.Tensor:
    """The penalty of all layers."""
    return torch.stack([layer.penalty() for layer in own.layers(model) if isinstance(layer, KnowHiraLinear)]).sum()


PLUGIN = Method(config=KnowHiraConfig, wrap=wrap, extra_loss=extra_loss)
