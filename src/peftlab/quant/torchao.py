"""torchao: int8 and int4 weights, made from full-precision ones while they are loaded; inputs stay as they are.

Runs on a CPU and on GPUs. int4 has one scale per 32 inputs. Needs the extra `torchao`. Left out: its kinds that also
round inputs (they have no backward) and its packed int4 (not on a CPU).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.config.settings import Settings
from peftlab.errors import UserError
from peftlab.protocols import Quantizer
from peftlab.quant._needed import needed

_GROUP = 32
"""Inputs that share a scale in int4."""


def fits(scheme: str, layers: Mapping[str, Any]) -> None:
    """See that groups of weights fill whole rows.

    Raises:
        UserError: They do not in some layer.
    """
    wrong = [f"{name} ({layer.in_features})" for name, layer in layers.items() if layer.in_features % _GROUP]
    if scheme == "int4" and wrong:
        raise UserError(
            f"quant.method = torchao-int4 shares a scale between {_GROUP} inputs, which does not divide those of "
            f"{len(wrong)} layers, the first is {wrong[0]}",
            fix="quant.method=torchao-int8, or quant.method=bnb-nf4",
        )


def quantises(module: Any) -> bool:
    """Whether a layer of a model becomes one of few bits."""
    from torch import nn

    return isinstance(module, nn.Linear)


def load_options(scheme: str, quant: Settings, kept: Sequence[str], device: str) -> Mapping[str, Any]:
    """What `from_pretrained` is told; modules in `kept` stay as they are."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from transformers import TorchAoConfig

    if scheme == "int8":
        kind = Int8WeightOnlyConfig()
    else:
        kind = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(_GROUP))  # type: ignore[attr-defined]
    there = {} if device == "cpu" else {"device_map": {"": device}}
    return {"quantization_config": TorchAoConfig(kind, modules_to_not_convert=list(kept) or None), **there}


def prepare(model: Any) -> int:
    """How many layers are quantised; nothing needs to be done."""
    from torchao.utils import TorchAOBaseTensor

    return sum(isinstance(parameter, TorchAOBaseTensor) for parameter in model.parameters())


PLUGIN = Quantizer(
    schemes={"int8": (), "int4": ()},
    packages=("torchao",),
    check=needed("torchao", "torchao"),
    fits=fits,
    quantises=quantises,
    load_options=load_options,
    prepare=prepare,
)
