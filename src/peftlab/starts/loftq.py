"""LoftQ: the base is rounded to few bits, and the adapter begins as what was lost (Li et al., https://arxiv.org/abs/2310.08659).

The same alternation as peft's, with bitsandbytes' rounding: Q = round(W - B A), then A and B of the SVD of W - Q. It
is done here because peft does it on a GPU only. The base holds Q in its own precision; it is not stored in few bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peftlab.errors import UserError
from peftlab.protocols import Start
from peftlab.starts import _residual


def check(adapter: Mapping[str, Any], kind: str, calibration: Any) -> None:
    """Refuse what would begin somewhere else than at the base, and an absent bitsandbytes.

    Raises:
        UserError: The scaling is not 1, the settings are impossible, or the package is missing.
    """
    import importlib.util

    _residual.check(adapter, kind, calibration)
    options = adapter.get("loftq_config") or {}
    bits, rounds = _bits(options), _rounds(options)
    if bits not in (4, 8) or rounds < 1:
        raise UserError(
            f"loftq_config: loftq_bits = {bits}, loftq_iter = {rounds}", fix="give 4 or 8 bits, and one round or more"
        )
    rank, alpha = adapter.get("r", 8), adapter.get("lora_alpha", 8)
    if alpha != rank or adapter.get("use_rslora") or adapter.get("rank_pattern") or adapter.get("alpha_pattern"):
        raise UserError(
            "LoftQ's factors make up for the rounding when they are scaled by 1 "
            f"(lora_alpha = {alpha}, r = {rank}, use_rslora = {bool(adapter.get('use_rslora'))})",
            fix="set lora_alpha to r, and leave use_rslora, rank_pattern and alpha_pattern out",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("LoftQ needs the extra 'bnb'", fix="pip install 'peftlab[bnb]'")


def wrap(model: Any, config: Any, calibration: Any, make: Callable[[Any], Any]) -> tuple[Any, Mapping[str, Any]]:
    """Wrap as plain LoRA, then put the factors in, and the rounded weights in the base's place."""
    declared, config.init_lora_weights = config.init_lora_weights, True
    wrapped = make(config)
    config.init_lora_weights = declared
    kept: dict[str, Any] = {}
    for path, layer in wrapped.named_modules():
        if _is_adapted(layer):
            weight = layer.get_base_layer().weight.detach()
            weight = weight.T if layer.fan_in_fan_out else weight
            last, before = _alternate(weight, layer.r[_residual.ADAPTER], config.loftq_config)
            for inner, factor in ((layer.lora_A, last[0]), (layer.lora_B, last[1])):
                inner[_residual.ADAPTER].weight.data.copy_(factor)
            kept.update(_residual.tensors(path.removeprefix(_residual.BELOW), *before, 1.0))
    _residual.put(wrapped, config, kept, rounded)
    for layer in filter(_is_adapted, wrapped.modules()):
        _measure(layer)
    return wrapped, kept


def _measure(layer: Any) -> None:
    """Take DoRA's magnitudes of the weight that training begins with; peft took them of the base as it was."""
    magnitudes = dict(layer.lora_magnitude_vector).get(_residual.ADAPTER)
    if magnitudes is None:
        return
    kept = magnitudes.weight
    a, b = (factors[_residual.ADAPTER].weight.detach() for factors in (layer.lora_A, layer.lora_B))
    magnitudes.update_layer(
        base_layer=layer.get_base_layer(), lora_A=a, lora_B=b, scaling=layer.scaling[_residual.ADAPTER]
    )
    kept.data.copy_(magnitudes.weight.data)
    magnitudes.weight = kept


def load(model: Any, config: Any, factors: Mapping[str, Any], make: Callable[[Any], Any]) -> Any:
    """Load the adapter as a plain one, then round the base as it was rounded: by the factors of the round before."""
    return _residual.load(model, config, factors, make, residual=rounded)


def rounded(weight: Any, a: Any, b: Any, scaling: float, config: Any) -> Any:
    """Q = round(W - B A), in float32."""
    return _round(weight.float() - b.float() @ a.float(), _bits(config.loftq_config))


def _bits(options: Mapping[str, Any]) -> int:
    """As declared, else as peft's LoftQConfig has it."""
    return int(options.get("loftq_bits", 4))


def _rounds(options: Mapping[str, Any]) -> int:
    return int(options.get("loftq_iter", 1))


def _is_adapted(layer: Any) -> bool:
    from peft.tuners.lora import Linear

    return isinstance(layer, Linear)


def _alternate(weight: Any, rank: int, options: Mapping[str, Any]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """A and B after the last round, and those of the round before, which the base was rounded by."""
    import torch

    wide = weight.float()
    a, b = wide.new_zeros(rank, wide.shape[1]), wide.new_zeros(wide.shape[0], rank)
    before = a, b
    with torch.no_grad():
        for _ in range(_rounds(options)):
            before = a, b
            u, s, vh = torch.linalg.svd(wide - _round(wide - b @ a, _bits(options)), full_matrices=False)
            root = s[:rank].sqrt()
            a, b = root[:, None] * vh[:rank], u[:, :rank] * root
    return (a, b), before


def _round(weight: Any, bits: int) -> Any:
    """The weight through NF4 (blocks of 64) or int8 (a scale for each row), and back to float32."""
    from bitsandbytes import functional

    whole = weight.contiguous()
    if bits == 4:
        stored, state = functional.quantize_4bit(whole, quant_type="nf4", compress_statistics=False)
        return functional.dequantize_4bit(stored, state).float()
    stored, scales, _ = functional.int8_vectorwise_quant(whole.half())
    return functional.int8_vectorwise_dequant(stored, scales).float()


PLUGIN = Start(changes_base=True, check=check, fits=_residual.fits, wrap=wrap, load=load)
