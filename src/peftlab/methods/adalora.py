"""AdaLoRA: all of its ranks are saved, and its count of ranks stays frozen on a half-precision base.

Zhang et al. 2023 (https://arxiv.org/abs/2303.10512). peft saves only the ranks that the last allocation left. Products
of fewer ranks are sums in another order, which is one logit on a real model in bfloat16; and between two allocations
the others are trained again, so that they are not zero. Saved whole, the adapter is what was trained, bit for bit; peft
loads it as well.

peft makes `ranknum` frozen, and then moves the layer's tensors to the base's precision: new tensors stand in the old
ones' place, and new ones are trainable. It would be trained, and no file holds it (peft sets it anew when it loads), so
the saved adapter would be another one than was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftlab.errors import UserError
from peftlab.protocols import Method


def wrap(base: Any, config: Any, make: Any = None) -> Any:
    """peft's own, with the counts frozen.

    Raises:
        UserError: The config asks for a start or a variant of LoRA, whose keys it inherits and peft passes over.
    """
    for key, value in config.to_dict().items():
        start = key == "init_lora_weights" and isinstance(value, str)
        if start or (value and (key.startswith(("use_", "alora_")) or key.endswith("_config"))):
            raise UserError(
                f"{key} = {value!r}: this is a key of LoRA, which AdaLoRA takes and passes over: it would be trained "
                "without it, under its name",
                fix=f'leave {key} out, or use "peft_type": "LORA"',
            )
    model = make(config)
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)
    return model


def save(model: Any, folder: Path) -> None:
    """peft's own, of all ranks: what an allocation left is put aside meanwhile."""
    config = model.peft_config["default"]
    left, config.rank_pattern = config.rank_pattern, None
    try:
        model.save_pretrained(str(folder))
    finally:
        config.rank_pattern = left


PLUGIN = Method(wrap=wrap, save=save)
