"""ShadowPEFT: the last block's update of the shadow state is frozen, since nothing reads what it writes.

peft's auxiliary loss is of the first shadow state (equations 8 and 9 of its paper), and each block's output is of the
state before its own update, so the last update has no part in output or loss and could never get a gradient. That loss
is only there when labels reach the model, which the loop sees to; it is told apart from the task's.

Where the shadow shares the base's embedding, peft takes the shadow's own away if it is called `embed_tokens`; any other
stays, is fed by nothing, and is frozen here.
"""

from __future__ import annotations

from typing import Any

from peftlab.protocols import Method

_UPDATES = ("shadow_update_transform", "shadow_update_gate")


def wrap(base: Any, config: Any, make: Any = None) -> Any:
    """peft's own, with the last block's update frozen, and an embedding that nothing is looked up in."""

    model = make(config)
    tuner = model.base_model
    for adapter, shares in tuner._shadow_share_embeddings.items():
        if shares:
            _freeze_embedding(tuner.shadow_backbone[adapter])
    blocks = [module for module in model.modules() if all(name in dict(module.named_children()) for name in _UPDATES)]
    for name in _UPDATES:
        getattr(blocks[-1], name).requires_grad_(False)
    return model


def _freeze_embedding(backbone: Any) -> None:
    try:
        embedding = backbone.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # peft took it away
        return
    if embedding is not None:
        embedding.requires_grad_(False)


PLUGIN = Method(wrap=wrap)
