"""OLoRA: the adapter begins as the first columns and rows of each weight's QR (Buyukakyuz, https://arxiv.org/abs/2406.01775).

Reads no rows; peft decomposes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peftlab.errors import UserError
from peftlab.starts import _residual


def wrap(model: Any, config: Any, calibration: Any, make: Callable[[Any], Any]) -> tuple[Any, Mapping[str, Any]]:
    """As any method that changes the base.

    Raises:
        UserError: A layer holds its weight as [in, out]: peft decomposes that as if it were [out, in].
    """
    from torch import nn

    for name, module in _residual.targets(model, _residual.resolved(model, config)):
        if not isinstance(module, nn.Linear):
            raise UserError(
                f"peft's OLoRA does not know layers like {name} ({type(module).__name__}), whose weight is transposed",
                fix="use init_lora_weights=pissa, which does, or target nn.Linear layers",
            )
    return _residual.wrap(model, config, calibration, make)


PLUGIN = _residual.start(wrap=wrap)
