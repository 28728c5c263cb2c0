"""AdaLoRA: its count of ranks stays frozen on a half-precision base.

peft makes `ranknum` frozen, and then moves the layer's tensors to the base's precision: new tensors stand in the old
ones' place, and new ones are trainable. It would be trained, and no file holds it (peft sets it anew when it loads), so
the saved adapter would be another one than was trained.
"""

from __future__ import annotations

from typing import Any

from peftlab.protocols import Method


def wrap(base: Any, config: Any, make: Any = None) -> Any:
    """peft's own, with the counts frozen."""

    model = make(config)
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)
    return model


PLUGIN = Method(wrap=wrap)
