"""Low-rank starts that move a part of the base's weight W into the adapter: W = R + s B0 A0, with R as the base.

What R is made from, B0, A0 and s, is kept beside the trained adapter. So R is made again by one product and one
difference, bit for bit, on a fresh base, without the decomposition (which may be random, or need rows) that found B0
and A0. R is always made here, of the factors as the model holds them: in half precision peft makes it of factors that
it rounds afterwards.

The trained adapter on R equals a plain one of twice the rank on W: s (B A - B0 A0) = s [B, -B0] [A; A0].
"""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from peftlab.errors import UserError
from peftlab.protocols import Start

ADAPTER = "default"
BELOW = "base_model.model."
"""What stands before the name of a base's module once peft has wrapped the base."""

INIT_KEY = "init_lora_weights"
_EMBEDDING_A = ".lora_embedding_A"
WEIGHTS_FILE, CONFIG_FILE, START_FILE = "adapter_model.safetensors", "adapter_config.json", "start.safetensors"

_VARIANTS = {
    "kasa_config": "KaSA cuts components off the same weights, and scales what lies between the factors",
    "alora_invocation_tokens": "before its tokens such an adapter is off, and the changed base is left alone",
    "use_bdlora": "its factors are made of blocks, and those of the start are whole",
    "monteclora_config": "the plain form for sharing cannot hold what it adds to the factors",
}
"""Other variants of LoRA that do not go with a changed base, and why."""

Make = Callable[[Any], Any]
Residual = Callable[..., Any]
"""(weight, A, B, scaling, config) -> the weight to put in its place; all in the layout [out, in]."""


def resolved(model: Any, config: Any) -> Any:
    """A copy of the config with the names of its target modules written out, as peft does it when it wraps."""
    from peft.tuners.lora import LoraModel
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    here = copy.copy(config)
    if here.target_modules is None:
        usual = LoraModel.target_module_mapping.get(LoraModel.get_model_config(model)["model_type"])
        if usual is None:
            raise ValueError("Please specify `target_modules` in `peft_config`")
        here.target_modules = set(usual)
    return _maybe_include_all_linear_layers(here, model)


def targets(model: Any, config: Any) -> Iterator[tuple[str, Any]]:
    """The linear layers that the adapter will be put on, by name; the config's targets are `resolved`."""
    from peft.tuners.lora import LoraModel
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        if LoraModel._check_target_module_exists(config, name) and isinstance(module, nn.Linear | Conv1D):
            yield name, module


def subtracted(weight: Any, a: Any, b: Any, scaling: float, config: Any) -> Any:
    """R = W - s B A, in float32."""
    return weight.float() - (scaling * b.float()) @ a.float()


def wrap(model: Any, config: Any, calibration: Any, make: Make) -> tuple[Any, dict[str, Any]]:
    """Have peft decompose the base, then put R, made here, in the place of its own."""
    originals = _originals(model, config)
    wrapped = make(config)
    factors: dict[str, Any] = {}
    for name in originals:
        layer = wrapped.get_submodule(BELOW + name)
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        factors.update(tensors(name, a, b, layer.scaling[ADAPTER]))
    put(wrapped, config, factors, subtracted, originals)
    return wrapped, factors


def load(model: Any, config: Any, factors: Mapping[str, Any], make: Make, *, residual: Residual = subtracted) -> Any:
    """Have peft load the adapter as one that changes no base, then make R from the factors."""
    declared = config.init_lora_weights
    config.init_lora_weights = True
    wrapped = make(config)
    config.init_lora_weights = declared
    put(wrapped, config, factors, residual)
    return wrapped


def tensors(name: str, a: Any, b: Any, scaling: float) -> dict[str, Any]:
    """What one layer's R is made from, as it is kept."""
    import torch

    kept = {"A": a, "B": b, "scaling": torch.tensor(scaling, dtype=torch.float64)}
    return {f"{name}.{part}": value.detach().to("cpu").clone().contiguous() for part, value in kept.items()}


def put(
    wrapped: Any,
    config: Any,
    factors: Mapping[str, Any],
    residual: Residual,
    originals: Mapping[str, Any] | None = None,
) -> None:
    """Put R in the place of W; without `originals`, W is what the base holds now."""
    import torch

    for name in names(factors):
        layer = wrapped.get_submodule(BELOW + name)
        base = layer.get_base_layer()
        old = base.weight.data if originals is None else originals[name].to(base.weight.device)
        weight = old.T if layer.fan_in_fan_out else old
        a, b = (factors[f"{name}.{part}"].to(old.device) for part in "AB")
        with torch.no_grad():
            made = residual(weight, a, b, float(factors[f"{name}.scaling"]), config).to(old.dtype)
        base.weight.data = (made.T if layer.fan_in_fan_out else made).contiguous()


def names(factors: Mapping[str, Any]) -> list[str]:
    """The layers that factors are of."""
    return [key.removesuffix(".A") for key in factors if key.endswith(".A")]


def check(adapter: Mapping[str, Any], kind: str, calibration: Any) -> None:
    """Refuse variants that do not go with a changed base.

    Raises:
        UserError: One of them is asked for.
    """
    for key, why in _VARIANTS.items():
        if adapter.get(key) not in (None, False, []):
            raise UserError(
                f"{INIT_KEY} = {adapter[INIT_KEY]!r} does not go with {key}: {why}",
                fix=f"leave {key} out, or choose a start that leaves the base as it is",
            )


def fits(model: Any, config: Any, *, times: int = 1) -> None:
    """See that the layers whose weights will be changed are used once, and give factors enough.

    Args:
        model: The base, or its shapes.
        config: The adapter's.
        times: How many factors are computed for each that is taken.

    Raises:
        UserError: The other place that uses a weight would be changed as well; or a weight's decomposition has fewer
            factors than the rank asks for.
    """
    found = dict(targets(model, resolved(model, config)))
    for name, module in found.items():
        rank, most = rank_of(config, name), min(module.weight.shape) // times
        if rank > most:
            raise UserError(
                f"{INIT_KEY} = {config.init_lora_weights!r} begins as factors of each weight, of which {name} "
                f"({' x '.join(map(str, module.weight.shape))}) has {most} to give: r = {rank} is too large",
                fix=f'lower r, or give the layer its own: "rank_pattern": {{"{name.rpartition(".")[2]}": {most}}}',
            )
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    shared = [name for name, module in found.items() if uses[id(module.weight)] > 1]
    if shared or config.layer_replication:
        what = f"{shared[0]} shares its weight with another module" if shared else "layer_replication shares weights"
        raise UserError(
            f"{INIT_KEY} = {config.init_lora_weights!r} changes the base's weights, but {what}",
            fix="leave such modules out of target_modules, or choose a start that leaves the base as it is",
        )


def rank_of(config: Any, name: str) -> int:
    """The rank that peft gives a layer."""
    from peft.utils.other import get_pattern_key

    rank: int = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
    return rank


def _originals(model: Any, config: Any) -> dict[str, Any]:
    """Copies of the weights that will be changed, on the CPU."""
    found = targets(model, resolved(model, config))
    return {name: module.weight.detach().to("cpu", copy=True) for name, module in found}


# ------------------------------------------------------------------------------------------------------- plain form


def share(folder: Path, target: Path) -> None:
    """Write a saved adapter as a plain one of twice the rank, for the base as it was before the start.

    The scaling goes into B. Everything else that was trained (a head, magnitudes) is taken over.
    """
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    saved, factors = load_file(str(folder / WEIGHTS_FILE)), load_file(str(folder / START_FILE))
    plain, ranks = dict(saved), {}
    for name in names(factors):
        key_a, key_b = f"{BELOW}{name}.lora_A.weight", f"{BELOW}{name}.lora_B.weight"
        plain[key_a], plain[key_b] = _doubled(saved[key_a], saved[key_b], factors, name)
        ranks[name] = plain[key_a].shape[0]
    for key in [key for key in saved if key.endswith(_EMBEDDING_A)]:  # no start changes an embedding: as it is
        name = key.removeprefix(BELOW).removesuffix(_EMBEDDING_A)
        ranks[name] = saved[key].shape[0]
        key_b = key.removesuffix("A") + "B"
        plain[key_b] = (_scaling(config, name, ranks[name]) * saved[key_b].float()).contiguous()
    whole = 2 * config["r"]
    pattern = {name: rank for name, rank in ranks.items() if rank != whole}
    config |= {"r": whole, "lora_alpha": whole, "use_rslora": False, INIT_KEY: True}
    config |= {"rank_pattern": pattern, "alpha_pattern": dict(pattern), "corda_config": None, "lora_ga_config": None}
    target.mkdir(parents=True, exist_ok=True)
    save_file(plain, str(target / WEIGHTS_FILE), metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True)
    (target / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _scaling(config: Mapping[str, Any], name: str, rank: int) -> float:
    """What peft multiplies a layer's update with."""
    from peft.utils.other import get_pattern_key

    pattern = config["alpha_pattern"] or {}
    alpha = pattern.get(get_pattern_key(pattern.keys(), name), config["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if config["use_rslora"] else rank))


def _doubled(a: Any, b: Any, factors: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """[A; A0] and s [B, -B0], in float32."""
    import torch

    a0, b0 = factors[f"{name}.A"].float(), factors[f"{name}.B"].float()
    scaling = float(factors[f"{name}.scaling"])
    return torch.cat([a.float(), a0]).contiguous(), (scaling * torch.cat([b.float(), -b0], dim=1)).contiguous()


def start(
    *,
    wrap: Callable[..., Any] = wrap,
    check: Callable[..., None] = check,
    fits: Callable[..., None] = fits,
    **more: Any,
) -> Start:
    """The plug-in of such a start."""
    return Start(changes_base=True, check=check, fits=fits, wrap=wrap, load=load, share=share, **more)
