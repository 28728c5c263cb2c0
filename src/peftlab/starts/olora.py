"""OLoRA: the adapter begins as the first columns and rows of each weight's QR (Buyukakyuz, https://arxiv.org/abs/2406.01775).

Reads no rows; peft decomposes.
"""

from __future__ import annotations

from typing import Any

from peftlab.errors import UserError
from peftlab.starts import _residual


def fits(model: Any, config: Any) -> None:
    """As for any start that changes the base.

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
    _residual.fits(model, config)


PLUGIN = _residual.start(fits=fits)
