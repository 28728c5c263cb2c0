"""CorDA: each weight is decomposed with the covariance of what it sees (Yang et al., https://arxiv.org/abs/2406.05223).

peft computes: the covariance C of each layer's inputs over rows of text, one row a forward pass, and the SVD of W C.
Kept in our cache are C, which serves every rank, and the factors of one rank. peft's own cache files are pickles:
refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from peftlab.errors import UserError
from peftlab.protocols import Calibration
from peftlab.starts import _residual

_FACTORS = ("S_WC", "U_WC", "V_WC")
_TOGETHER = "|"
"""Between names of layers that see the same inputs, whose covariance is kept once."""


def check(adapter: Mapping[str, Any], kind: str, calibration: Any) -> None:
    """Refuse peft's cache files, and batches, in which padding would be counted.

    Raises:
        UserError: One of them is asked for.
    """
    _residual.check(adapter, kind, calibration)
    options = adapter.get("corda_config") or {}
    for key in ("cache_file", "covariance_file"):
        if options.get(key) is not None:
            raise UserError(
                f"corda_config.{key} = {options[key]!r}: peft keeps its caches as pickles, and what such a file holds "
                "is in no key",
                fix=f"leave {key} out: covariances and factors are cached all the same, as safetensors",
            )
    if calibration.batch_size not in (None, 1):
        raise UserError(
            f"calibration.batch_size = {calibration.batch_size}: CorDA's covariance is taken over one row at a time, "
            "without padding",
            fix="set calibration.batch_size=1 or leave it out",
        )


def wrap(
    model: Any, config: Any, calibration: Calibration, make: Callable[[Any], Any]
) -> tuple[Any, Mapping[str, Any]]:
    """Give each layer the factors that peft starts from, then start as any method that changes the base."""
    from peft.tuners.lora.corda import CordaEigens

    here = _residual.resolved(model, config)
    here.corda_config = dataclasses.replace(config.corda_config, prune_temporary_fields=True, verbose=False)
    layers = dict(_residual.targets(model, here))
    seen = {"layers": list(layers), "half": here.corda_config.use_float16_for_covariance}
    ranks = {"r": here.r, "rank_pattern": here.rank_pattern, "method": here.corda_config.corda_method}
    factors = calibration.kept(
        "factors",
        lambda: _factors(model, here, layers, _covariances(model, here, layers, calibration, seen)),
        depends_on={**ranks, **seen},
    )
    for name, layer in layers.items():  # peft divides S in place, and takes all of it off again
        parts = {part: factors[f"{name}.{part}"].to(layer.weight.device, copy=True) for part in _FACTORS}
        layer.eigens = CordaEigens(**parts)
    return _residual.wrap(model, config, calibration, make)


def _factors(model: Any, config: Any, layers: Mapping[str, Any], covariances: Mapping[str, Any]) -> dict[str, Any]:
    """peft's decomposition; where it would run the model to get covariances, it is given them."""
    from peft.tuners.lora.corda import preprocess_corda

    def give() -> None:
        for name, layer in layers.items():
            layer.covariance_matrix, layer.sample_count = covariances[name].to(layer.weight.device), 1

    preprocess_corda(model, config, give)
    found = {f"{name}.{part}": getattr(layer.eigens, part) for name, layer in layers.items() for part in _FACTORS}
    for layer in layers.values():
        del layer.eigens
    return found


def _covariances(
    model: Any, config: Any, layers: Mapping[str, Any], calibration: Calibration, seen: Mapping[str, Any]
) -> dict[str, Any]:
    """The covariance of each layer's inputs by its name; layers with the same inputs share one."""
    from peft.tuners.lora.corda import calib_cov_distribution

    def compute() -> dict[str, Any]:
        calib_cov_distribution(model, config, lambda: _run(model, layers, calibration), None, None)
        together: dict[str, Any] = {}
        for name, layer in layers.items():
            same = next((names for names, found in together.items() if _same(found, layer.covariance_matrix)), None)
            if same is None:
                together[name] = layer.covariance_matrix
            else:
                together[f"{same}{_TOGETHER}{name}"] = together.pop(same)
            del layer.covariance_matrix, layer.sample_count
        return together

    kept = calibration.kept("covariance", compute, depends_on=seen, large=True)
    return {name: matrix for names, matrix in kept.items() for name in names.split(_TOGETHER)}


def _same(one: Any, other: Any) -> bool:
    import torch

    return bool(one.shape == other.shape and one[0, 0] == other[0, 0] and torch.equal(one, other))


def _run(model: Any, layers: Mapping[str, Any], calibration: Calibration) -> None:
    """Show the model every row. Each layer must get one vector a token.

    Raises:
        UserError: One gets a vector a row (a pooler, a head), of which peft makes no covariance, or nothing.
    """
    dimensions: dict[str, int] = {}

    def noted(name: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: Any) -> None:
            dimensions[name] = inputs[0].dim()
            if dimensions[name] != 3:
                raise _no_tokens(name)

        return hook

    hooks = [layer.register_forward_pre_hook(noted(name)) for name, layer in layers.items()]
    options = {"use_cache": False} if calibration.kind == "causal" else {}
    try:
        for batch in calibration.batches:
            model(**{name: value for name, value in batch.items() if name != "labels"}, **options)
    finally:
        for hook in hooks:
            hook.remove()
    missed = [name for name in layers if name not in dimensions]
    if missed:
        raise _no_tokens(missed[0])


def _no_tokens(name: str) -> UserError:
    return UserError(
        f"CorDA needs a vector for each token, and {name} gets one for each row, or none",
        fix="name it in exclude_modules, or leave it out of target_modules",
    )


PLUGIN = _residual.start(wrap=wrap, reads_rows=True, rows=256, check=check)
