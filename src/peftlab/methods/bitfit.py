"""BitFit: trains every bias of the model, and the new head on classification; everything else stays as it is.

Ben Zaken, Goldberg and Ravfogel 2022, BitFit (https://arxiv.org/abs/2106.10199). A bias is what the paper's section 3
lists: of the attention's query, key, value and output, of both linear layers after it, and of both LayerNorms. Weights
of norms are no biases and are never trained. On a model without biases there is nothing to train, and it is refused.
"""

from __future__ import annotations

from typing import Any

from peftlab import own
from peftlab.config.settings import setting
from peftlab.errors import UserError
from peftlab.protocols import Method


class BitFitConfig(own.OwnConfig):
    """Which biases: the paper's section 4.2 finds that those of query and second linear layer nearly suffice."""

    target_modules: list[str] | None = setting(
        None, "last parts of names of modules whose biases are trained; null: every bias"
    )


def wrap(base: Any, config: BitFitConfig, make: Any = None) -> Any:
    """Free the biases (and a new head), freeze the rest.

    Raises:
        UserError: The model has no bias, or none where the config asks for it.
    """
    base.requires_grad_(False)
    head = own.head(base, config)
    names = [name for name, _ in base.named_parameters()]
    biases = [name for name in names if _is_bias(name) and name not in head]
    if not biases:
        raise UserError(
            f"BitFit trains biases, and none of this model's {len(names)} tensors is one",
            fix="take a method that adds weights (lora, ia3), or a model with biases",
        )
    chosen = [name for name in biases if _in(name, config.target_modules)]
    if not chosen:
        owners = sorted({name.split(".")[-2] for name in biases if "." in name})
        raise UserError(
            f"BitFit: target_modules = {config.target_modules} names no module with a bias",
            fix=f"modules with a bias: {', '.join(owners)}",
        )
    own.free(base, [*chosen, *head])
    return base


def _is_bias(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last == "bias" or last.endswith("_bias")


def _in(name: str, targets: list[str] | None) -> bool:
    owner = name.rpartition(".")[0]
    return targets is None or any(owner == one or owner.endswith(f".{one}") for one in targets)


PLUGIN = Method(config=BitFitConfig, wrap=wrap)
