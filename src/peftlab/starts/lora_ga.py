"""LoRA-GA: the adapter begins along the gradient of each weight (Wang et al., https://arxiv.org/abs/2407.05000).

peft computes: the mean gradient over batches of rows, of the model's own labelled loss, and its random SVD. 64 batches
of 2 rows are what peft's own example takes. peft's cache file is a pickle: none is written, gradients are kept in our
cache.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from peftlab.protocols import Calibration
from peftlab.starts import _residual


def wrap(
    model: Any, config: Any, calibration: Calibration, make: Callable[[Any], Any]
) -> tuple[Any, Mapping[str, Any]]:
    """Give each layer its gradient, then start as any method that changes the base."""
    from peft.tuners.lora import LoraGAConfig, preprocess_loraga

    if config.lora_ga_config is None:
        config.lora_ga_config = LoraGAConfig()
    here = _residual.resolved(model, config)
    layers = dict(_residual.targets(model, here))

    def step() -> None:
        options = {"use_cache": False} if calibration.kind == "causal" else {}
        with warnings.catch_warnings():  # of the first layer, whose inputs are frozen embeddings
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            for batch in calibration.batches:
                model(**batch, **options).loss.backward()

    def compute() -> dict[str, Any]:
        preprocess_loraga(model, here, step)
        found = {name: layer._peft_loraga_grad for name, layer in layers.items()}
        for layer in layers.values():
            del layer._peft_loraga_grad
        return found

    # a base with dropout, or with a new head, has another gradient for each seed
    depends_on = {"layers": list(layers), "seed": calibration.seed}
    gradients = calibration.kept("gradient", compute, depends_on=depends_on, large=True)
    for name, layer in layers.items():
        layer._peft_loraga_grad = gradients[name].to(layer.weight.device)
    return _residual.wrap(model, config, calibration, make)


# the factors are those at the odd and at the even places of twice as many
PLUGIN = _residual.start(
    fits=functools.partial(_residual.fits, times=2),
    wrap=wrap,
    reads_rows=True,
    rows=128,
    batch_size=2,
    needs_labels=True,
)
