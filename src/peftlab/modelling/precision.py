"""The declared precision of a base: whether it can work here, whether the stored weights agree, how they are loaded.

Knows no library by name; each is a plug-in in `quant/`. Loads no weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from peftlab import measure
from peftlab.config.groups import QuantSettings
from peftlab.errors import UserError
from peftlab.protocols import Quantizer, find, names, quantizer_of

_DEQUANTISED = "gguf"
"""Weights in this form are converted before they are loaded (`conversion.py`)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a base is loaded in few bits: arguments of `from_pretrained`, then `prepare` for the loaded model."""

    quantizer: Quantizer
    options: Mapping[str, Any]

    def prepare(self, model: Any) -> Mapping[str, Any]:
        """Make a loaded model ready; what the record says of it.

        Raises:
            UserError: Nothing of it was quantised.
        """
        layers = self.quantizer.prepare(model)
        if not layers:
            raise _nothing()
        return {"quantised_layers": layers, "quantised_with": measure.versions(self.quantizer.packages)}


def check(quant: QuantSettings, device: str) -> None:
    """See that a declared precision can work on this machine, before anything of a model is looked at.

    Raises:
        UserError: It cannot.
    """
    if quant.method is not None:
        quantizer, scheme = quantizer_of(quant.method)
        quantizer.check(scheme, device)


def check_trains_all(quant: QuantSettings, dtype: str) -> None:
    """Refuse to train all weights of a quantised base, or of one in float16.

    Raises:
        UserError: That is asked for.
    """
    if quant.method is not None:
        raise UserError(
            f"quant.method = {quant.method}: full fine-tuning trains every weight of the base, and weights of so few "
            "bits take no small steps",
            fix="train an adapter (adapter_config.json), or all weights as they are: quant.method=null",
        )
    if dtype == "float16":
        raise _half("all weights")


def check_trainable(parameters: Mapping[str, torch.Tensor]) -> None:
    """Refuse to train weights in float16.

    Raises:
        UserError: There are some.
    """
    half = [name for name, parameter in parameters.items() if parameter.dtype == torch.float16]
    if half:
        raise _half(f"{len(half)} tensors, the first is {half[0]},")


def _half(what: str) -> UserError:
    """The second moment of Adam is a square, and float16 ends at 6e-8: it divides by zero within a few steps."""
    return UserError(
        f"model.dtype = float16: {what} would be trained in float16, whose range is too small for an optimizer's steps",
        fix="model.dtype=bfloat16 or float32; an adapter on a float16 base is in float32 unless "
        "model.autocast_adapter_dtype=false says otherwise",
    )


def plan(quant: QuantSettings, skeleton: Any, device: str, *, model_id: str) -> Plan | None:
    """How to load a model whose shapes are `skeleton` (no weights); None: as it is.

    Raises:
        UserError: What is stored is not what is declared, or the shapes do not fit.
    """
    found = stored(skeleton.config)
    _agree(quant, found, model_id)
    if quant.method is None:
        return None
    quantizer, scheme = quantizer_of(quant.method)
    quantizer.check(scheme, device)
    kept = head_names(skeleton)
    if found is None:
        layers = {
            name: module
            for name, module in skeleton.named_modules()
            if name.split(".")[0] not in kept and quantizer.quantises(module)
        }
        if not layers:
            raise _nothing()
        quantizer.fits(scheme, layers)
    options = dict(quantizer.load_options(scheme, quant, kept, device))
    if found is not None:  # what is stored decides, and equals what is declared
        options.pop("quantization_config", None)
    return Plan(quantizer=quantizer, options=options)


def head_names(model: Any) -> tuple[str, ...]:
    """The parts of a model beside its body, which keep their precision: what writes text, or a new classification head.

    The library would leave alone what writes text, and quantise a new head whose last tensor is a bias.
    """
    children = [name for name, _ in model.named_children()]
    body = model.base_model_prefix
    return tuple(name for name in children if name != body) if body in children else ()


def stored(config: Any) -> Mapping[str, Any] | None:
    """What a checkpoint's config says of its quantised weights; None: they are not quantised."""
    found = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    if found is None:
        return None
    plain: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    return None if plain.get("quant_method") == _DEQUANTISED else plain


def _agree(quant: QuantSettings, found: Mapping[str, Any] | None, model_id: str) -> None:
    """Refuse weights that are stored in another precision than is declared.

    Raises:
        UserError: They are.
    """
    declared = quant.model_dump()
    if found is None:
        if quant.method is not None and not quantizer_of(quant.method)[0].makes:
            raise UserError(
                f"quant.method = {quant.method} reads weights that are stored so; those of '{model_id}' are not",
                fix="name such a checkpoint, or quantise while loading: quant.method=bnb-nf4",
            )
        return
    what = str(found.get("quant_method") or "quantised")
    quantizer, wanted = _declaration(found)
    if quantizer is None:
        raise UserError(
            f"the weights of model.id '{model_id}' are stored quantised ({what}), a form that nothing here reads",
            fix="take the model's full-precision weights, with quant.method if fewer bits are wanted",
        )
    plain = {name: None if value == quantizer.chosen.get(name) else value for name, value in declared.items()}
    if any(plain[name] != value for name, value in wanted.items()):
        fix = " ".join(f"quant.{name}={'null' if v is None else str(v).lower()}" for name, v in wanted.items())
        said = quant.method or "no quant.method"
        raise UserError(
            f"the weights of model.id '{model_id}' are stored quantised ({what}), but the run declares {said}: the "
            "precision of a base is declared, never implied",
            fix=f"{fix}, or take the model's full-precision weights",
        )


def _declaration(found: Mapping[str, Any]) -> tuple[Quantizer | None, Mapping[str, Any]]:
    """The plug-in that reads such weights, and the settings that declare them."""
    for name in names("quant"):
        quantizer: Quantizer = find("quant", name)
        wanted = quantizer.declares(found)
        if wanted is not None:
            return quantizer, wanted
    return None, {}


def _nothing() -> UserError:
    return UserError(
        "quant.method: this model has no layer that can be quantised so",
        fix="quant.method=null, or another method of quantisation",
    )


# ------------------------------------------------------------------------------------- looking into what was loaded


def num_weights(parameter: torch.Tensor) -> int:
    """Weights that a parameter stands for: those that are packed several to a byte say their own shape."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else math.prod(packed.shape)


def plain_tensors(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a tensor is made of: itself, or what lies in one that wraps others (weights, scales, zeros)."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from plain_tensors(f"{name}/{part}", getattr(tensor, part))


def scales(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a layer with packed weights keeps beside them and only its state says: scales, codes."""
    for name, module in model.named_modules():
        own = {id(tensor) for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))}
        if any(not parameter.is_floating_point() for parameter in module.parameters(recurse=False)):
            for key, tensor in module.state_dict(keep_vars=True).items():
                if isinstance(tensor, torch.Tensor) and id(tensor) not in own:
                    yield f"{name}.{key}", tensor
