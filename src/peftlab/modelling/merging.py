"""A saved adapter merged into its base: in float32, and only into weights of float32. Writes no file.

Weights of fewer bits round a small update away, and nothing says so: what is merged into them is close to the base
again. So an adapter that was trained on a quantised base is merged into the weights that were quantised, and one that
was trained on a base of 16 bits into the same weights in float32.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from peftlab import own
from peftlab.config.groups import QuantSettings
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.modelling.adapting import quiet_peft
from peftlab.modelling.models import Built
from peftlab.modelling.weights import load_trained

_PROBE = 12
"""Tokens of a made-up row."""

_ROUNDING = 1e-4
"""How far off merged weights may be, as a share of the largest logit."""


def in_float32(spec: RunSpec) -> RunSpec:
    """The run on its base in float32."""
    exact = {"model": spec.model.model_copy(update={"dtype": "float32"}), "quant": QuantSettings()}
    return spec.model_copy(update=exact)


def merged(spec: RunSpec, folder: Path) -> Any:
    """The run's base in float32 with its saved adapter merged into it.

    After training on a base of fewer bits it answers a little otherwise than what was scored: its base is not the
    rounded one that the adapter was trained on.

    Raises:
        UserError: The method cannot be merged, or the base has no full-precision weights.
    """
    return merge(load_trained(in_float32(spec), folder))


def merge(built: Built) -> Any:
    """The base of `built` with its adapter merged into it, without the adapter's modules.

    Raises:
        UserError: The base is not in float32, or the method cannot be merged, or what was merged answers otherwise.
    """
    if built.adapter is None and built.method.load is None:  # all of its weights are the base's
        return built.model
    halves = any(one.is_floating_point() and one.element_size() < 4 for one in built.model.parameters())
    if built.facts.get("quantised_layers") or halves:
        kind = "quantised weights" if built.facts.get("quantised_layers") else "weights of 16 bits"
        raise UserError(
            f"merging into {kind} rounds the adapter away",
            fix="merge it into the full-precision base: peftlab.modelling.merging.merged",
        )
    before = _answers(built, built.model)
    try:
        with quiet_peft():
            ours = built.method.config is not None
            model = own.merge(built.model) if ours else built.model.merge_and_unload(safe_merge=True)
            _refuse_another(before, _answers(built, model))
            return model
    except (ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise UserError(f"this method cannot be merged: {error}", fix="share the adapter itself") from error


def _answers(built: Built, model: Any) -> torch.Tensor:
    """Logits of two made-up rows."""
    vocabulary = built.model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(2 * _PROBE, device=built.device) * 7919 % vocabulary).view(2, _PROBE)
    batch = SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids), labels=None)
    asked = built.method.forward_inputs if model is built.model else None  # merged, it is a model like any other
    more = asked(batch) if asked is not None else {}
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=batch.attention_mask, **more).logits
    return logits.float()


def _refuse_another(before: torch.Tensor, after: torch.Tensor) -> None:
    """peft merges some adapters into something else, and does not say so."""
    apart = float((after - before).abs().max()) if before.shape == after.shape else math.inf
    if not apart <= _ROUNDING * float(before.abs().max()):
        raise ValueError(f"merged, the model gives another output ({apart:.1e} apart)")
