"""Arrow routes between trained LoRA adapters by their own weights: nothing to train, and no config that names them.

Ostapenko et al. 2024 (https://arxiv.org/abs/2405.11157). peft builds it from folders by a call of its own, which an
adapter_config.json cannot express; on a causal model no weight of it is trainable.
"""

from __future__ import annotations

from typing import Any

from peftlab.errors import UserError
from peftlab.protocols import Method


def wrap(base: Any, config: Any, make: Any = None) -> Any:
    """Refuse it, with the reason.

    Raises:
        UserError: Always.
    """
    raise UserError(
        "arrow_config: Arrow is a router over adapters that are trained already, without weights of its own to train; "
        "peft builds it from their folders (create_arrow_model), which no adapter_config.json can name",
        fix='train the adapters one by one; a mixture that is trained over given adapters is "peft_type": "XLORA"',
    )


PLUGIN = Method(wrap=wrap)
