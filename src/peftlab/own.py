"""What an adapter that peft does not have is made of: its config, its layers, its files, and a switch to put it off.

A file of `methods/` (or of a package that the user names) builds on this. It changes the base in place: linear layers
get a `Layer` around them, or weights of the base are freed. Names no method, trains nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from peftlab.config.settings import Settings, setting
from peftlab.errors import UserError

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
ALL_LINEAR = "all-linear"
_STARTED_FROM = "_peftlab_started_from"
_SHOWN = 12


class OwnConfig(Settings):
    """The config of a method outside peft; a method adds its own fields. Both fields here are filled in."""

    is_prompt_learning: ClassVar[bool] = False

    peft_type: str = setting(..., "the method's name: its file, or package.module:attr")
    task_type: Literal["CAUSAL_LM", "SEQ_CLS"] = setting(..., "which head the task needs")

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data, as peft's configs give them."""
        return self.model_dump(mode="json")


class Layer(nn.Module):
    """A frozen linear layer whose weight W0 gets an update dW: y = base(x) + dW x. Subclasses give `update`.

    Parameters of the subclass are in float32 even on a base in half precision, and so is its product; y is rounded.
    """

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.enabled = True

    def update(self) -> torch.Tensor:
        """dW, in the shape of the weight: [out, in]."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base's output with the update's, rounded to the base's precision."""
        result: torch.Tensor = self.base_layer(x)
        if not self.enabled:
            return result
        update = self.update()
        return (result + nn.functional.linear(x.to(update.dtype), update)).to(result.dtype)


# ------------------------------------------------------------------------------------------------------ building


def put_on(model: Any, targets: str | Iterable[str] | None, make: Callable[[nn.Linear], Layer], name: str) -> None:
    """Freeze the base and put a layer around each target.

    Args:
        model: The base; changed in place.
        targets: Last parts of the layers' names, a regular expression for the whole name, `all-linear`, or None: those
            that peft takes for LoRA on this kind of model.
        make: From a linear layer to the layer around it.
        name: What the user calls the method.

    Raises:
        UserError: Nothing matches, or a match is no plain linear layer.
    """
    model.requires_grad_(False)
    wanted = targets if isinstance(targets, str) or targets is None else list(targets)
    wanted = _usual_targets(model) if wanted is None else wanted
    found = {path: module for path, module in model.named_modules() if _matches(model, path, module, wanted)}
    if not found:
        kinds = sorted({path.rpartition(".")[2] for path, module in model.named_modules() if _plain_linear(module)})
        raise UserError(
            f"{name}: target_modules = {json.dumps(wanted)} matches no layer of this model",
            fix=f"linear layers of this model: {', '.join(kinds)}",
        )
    for path, module in found.items():
        if not _plain_linear(module):
            raise UserError(
                f"{name}: target_modules = {json.dumps(wanted)} matches {path} ({type(module).__name__}); it needs "
                "linear layers whose weights are plain numbers",
                fix="name linear layers (nn.Linear); on a quantised base take another method, or quant.method=null",
            )
    for path, module in found.items():
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, make(module))


def free(model: Any, names: Iterable[str]) -> None:
    """Free these parameters of the base, and remember what they started from, for `disabled`."""
    parameters = dict(model.named_parameters())
    started = getattr(model, _STARTED_FROM, {})
    for name in names:
        started[name] = parameters[name].detach().clone()
        parameters[name].requires_grad_(True)
    setattr(model, _STARTED_FROM, started)


def head(model: Any, config: OwnConfig) -> list[str]:
    """Names of the parameters of a new classification head, which is trained by every method; none for a causal model.

    They are what lies beside the pretrained body, which transformers names in `base_model_prefix`.
    """
    if config.task_type != "SEQ_CLS":
        return []
    return [name for name, _ in model.named_parameters() if name.partition(".")[0] != model.base_model_prefix]


def in_base_precision(model: Any) -> None:
    """What the layers put on hold, in the precision of the base's weights."""
    for layer in layers(model):
        dtype = layer.base_layer.weight.dtype
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            if not name.startswith("base_layer.") and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def layers(model: Any) -> Iterator[Layer]:
    """The layers that were put on."""
    return (module for module in model.modules() if isinstance(module, Layer))


def _plain_linear(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Linear)
        and type(module.weight.data) is torch.Tensor
        and module.weight.is_floating_point()
        and tuple(module.weight.shape) == (module.out_features, module.in_features)
    )


def _matches(model: Any, path: str, module: nn.Module, wanted: str | list[str]) -> bool:
    if wanted == ALL_LINEAR:
        embedding = getattr(model, "get_output_embeddings", lambda: None)()
        in_head = path.partition(".")[0] != model.base_model_prefix
        return isinstance(module, nn.Linear) and module is not embedding and not in_head
    if isinstance(wanted, str):
        return re.fullmatch(wanted, path) is not None
    return any(path == one or path.endswith(f".{one}") for one in wanted)


def _usual_targets(model: Any) -> str | list[str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

    found: str | list[str] = USUAL.get(model.config.model_type, ALL_LINEAR)
    return found


# --------------------------------------------------------------------------------------------------------- files


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """Everything that the adapter is: whatever is trained, and all that its layers hold beside their base."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    for path, module in model.named_modules():
        if isinstance(module, Layer):
            own = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("base_layer.")}
            found.update({f"{path}.{name}": tensor for name, tensor in own.items()})
    return found


def save(model: Any, config: OwnConfig, folder: Path) -> None:
    """Write the adapter as safetensors, with its config beside it."""
    found = {name: tensor.to("cpu").contiguous() for name, tensor in sorted(tensors(model).items())}
    save_file(found, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def restore(model: Any, folder: Path) -> None:
    """Put saved weights into a model that was just wrapped with the same config.

    Raises:
        UserError: There are none, or they are not this adapter's or this base's.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"no {WEIGHTS_FILE} in {folder}", fix="restore the file; no other format is read")
    saved, here = load_file(str(path)), tensors(model)
    wrong = [f"{name} is missing" for name in sorted(here.keys() - saved.keys())]
    wrong += [f"{name} belongs to no part of this adapter" for name in sorted(saved.keys() - here.keys())]
    wrong += [
        f"{name} has the shape {list(saved[name].shape)}, here {list(here[name].shape)}"
        for name in sorted(here.keys() & saved.keys())
        if saved[name].shape != here[name].shape
    ]
    if wrong:
        raise UserError(
            f"{path} is not the adapter of this config on this base: {'; '.join(wrong[:_SHOWN])}",
            fix="load it with the config and the base that it was trained with",
        )
    with torch.no_grad():
        for name, tensor in here.items():
            tensor.copy_(saved[name])


# -------------------------------------------------------------------------------------------------------- switch


@contextlib.contextmanager
def disabled(model: Any) -> Iterator[None]:
    """The base as it was, for the time of the context: layers put off, freed weights back at what they started from."""
    put_on_layers = list(layers(model))
    parameters = dict(model.named_parameters())
    started: dict[str, torch.Tensor] = getattr(model, _STARTED_FROM, {})
    trained = {name: parameters[name].detach().clone() for name in started}
    _set(parameters, started)
    for layer in put_on_layers:
        layer.enabled = False
    try:
        yield
    finally:
        _set(parameters, trained)
        for layer in put_on_layers:
            layer.enabled = True


def merge(model: Any) -> Any:
    """The model with every update added to its weight, in float32, and no layer around it; changed in place."""
    for path, module in [(path, module) for path, module in model.named_modules() if isinstance(module, Layer)]:
        weight = module.base_layer.weight
        with torch.no_grad():
            weight.copy_(weight.float() + module.update().float())
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module.base_layer)
    return model


def _set(parameters: dict[str, nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
