"""EVA: A begins as the principal components of what each layer sees (Paischer et al., https://arxiv.org/abs/2410.07170).

peft computes, over batches of rows until the components have settled, and moves ranks between layers (`rho`). The base
stays as it is. Batches of 4 rows of the whole training data are what peft's own example takes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peftlab.errors import UserError
from peftlab.protocols import Calibration, Start
from peftlab.starts import _residual

_PASSES = 20
"""Over all batches, after which components that move on are taken not to settle; peft would go on for ever."""


def unknown_counts(adapter: Mapping[str, Any]) -> str | None:
    """With `rho` above 1 ranks move between layers of different width."""
    rho = (adapter.get("eva_config") or {}).get("rho", 2.0)
    return None if rho == 1.0 else f"EVA decides each layer's rank by the rows (eva_config.rho = {rho})"


def fits(model: Any, config: Any) -> None:
    """See that what each layer sees has so many components.

    Raises:
        UserError: It has fewer.
    """
    from torch import nn

    rho = config.eva_config.rho
    for name, module in _residual.targets(model, _residual.resolved(model, config)):
        wide = module.in_features if isinstance(module, nn.Linear) else module.weight.shape[0]
        wanted = round(_residual.rank_of(config, name) * rho)
        if wanted > wide:
            raise UserError(
                f"EVA looks for r * rho = {wanted} components of what {name} sees, which has {wide}",
                fix="lower r, or eva_config.rho (2 unless given)",
            )


def wrap(
    model: Any, config: Any, calibration: Calibration, make: Callable[[Any], Any]
) -> tuple[Any, Mapping[str, Any]]:
    """Wrap, then have peft put the components in; its layers of a new rank get the precision of all the others."""
    from peft import initialize_lora_eva_weights

    wrapped = make(config)
    precision = {name: layer.dtype for name, layer in _adapter_weights(wrapped)}
    depends_on = {
        "options": dict(vars(config.eva_config)),
        "ranks": {"r": config.r, "rank_pattern": config.rank_pattern},
        "layers": sorted(precision),
    }
    components = calibration.kept("components", lambda: _components(wrapped, calibration), depends_on=depends_on)
    initialize_lora_eva_weights(wrapped, eva_state_dict=dict(components), show_progress_bar=False)
    for name, weight in _adapter_weights(wrapped):
        weight.data = weight.data.to(precision[name])
    return wrapped, {}


def _adapter_weights(wrapped: Any) -> list[tuple[str, Any]]:
    return [(name, weight) for name, weight in wrapped.named_parameters() if ".lora_" in name]


def _components(wrapped: Any, calibration: Calibration) -> dict[str, Any]:
    from peft import get_eva_state_dict

    classifies = calibration.kind == "classify"
    options = {} if classifies else {"use_cache": False}
    calls = 0

    def forward(model: Any, inputs: Mapping[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls > _PASSES * len(calibration.batches) + 1:
            raise UserError(
                f"EVA's components have not settled after {_PASSES} passes over {len(calibration.batches)} batches",
                fix="raise calibration.rows or calibration.batch_size (a batch needs more tokens than r * rho, counted "
                "without the prompt unless eva_config.use_label_mask is false), or lower eva_config.tau",
            )
        return model(**{name: value for name, value in inputs.items() if name != "labels"}, **options)

    batches = _WithoutClasses(calibration.batches) if classifies else calibration.batches
    with contextlib.redirect_stdout(io.StringIO()):  # peft prints of each batch that is too short
        found: dict[str, Any] = get_eva_state_dict(
            wrapped, batches, forward_fn=forward, gather_distributed_inputs=False, show_progress_bar=False
        )
    return {name: components.contiguous() for name, components in found.items()}


class _WithoutClasses(Sequence[Mapping[str, Any]]):
    """Batches without `labels`: peft masks tokens by them, and a class belongs to no token."""

    def __init__(self, batches: Sequence[Mapping[str, Any]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        return {name: value for name, value in self._batches[index].items() if name != "labels"}


PLUGIN = Start(reads_rows=True, batch_size=4, fits=fits, unknown_counts=unknown_counts, wrap=wrap)
