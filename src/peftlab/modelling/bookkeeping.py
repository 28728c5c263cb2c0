"""What of a model changes in training besides its trainable tensors: found, read and written back.

Some methods keep state where `state_dict` does not look: buffers and frozen tensors that they rewrite, moving averages
in helper objects (AdaLoRA's importances), counters on modules, lists in their config. A resume without them parts from
the uninterrupted run. This file finds such state by comparing with the model as built, names no method, and reads only
plain data: tensors, numbers, strings, and lists and dicts of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peftlab.modelling import precision
from peftlab.modelling.models import Built

_HOUSEKEEPING = {"training", "inference_mode"}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The frozen tensors and plain attributes of a model as built."""

    versions: Mapping[str, tuple[int, int]] | None
    """Version counters; None where tensors are gathered anew each time, so that these say nothing."""
    checksums: Mapping[str, int | str]
    scales: Mapping[str, int]
    attributes: Mapping[str, Any]


def take_reference(built: Built, *, gathered: bool = False) -> Reference:
    """Remember the model as built, to find later what changed; `gathered` weights are whole only for the moment."""
    tensors = dict(_frozen(built))
    return Reference(
        versions=None if gathered else {name: _version(tensor) for name, tensor in tensors.items()},
        checksums={name: _checked(name, tensor, built) for name, tensor in tensors.items()},
        scales={name: checksum(tensor) for name, tensor in precision.scales(built.model)},
        attributes=dict(_attributes(built)),
    )


def changed_tensors(built: Built, reference: Reference) -> dict[str, torch.Tensor]:
    """Frozen tensors and buffers that differ from the model as built.

    Base weights are compared by their version counter first (a checksum of billions of weights at each checkpoint
    would cost more than the step; without counters only `moved_base_weights` looks), the few others by their digest.
    """
    changed, versions = {}, reference.versions
    for name, tensor in _frozen(built):
        if _is_base(name, built) and (versions is None or _version(tensor) == versions.get(name)):
            continue
        if _checked(name, tensor, built) != reference.checksums.get(name):
            changed[name] = tensor.detach()
    return changed


def moved_base_weights(built: Built, reference: Reference) -> list[str]:
    """Names of frozen base weights, or of scales of packed ones, whose bytes changed: there must be none."""
    weights = [
        name
        for name, tensor in _frozen(built)
        if _is_base(name, built) and checksum(tensor) != reference.checksums.get(name)
    ]
    scales = [name for name, tensor in precision.scales(built.model) if checksum(tensor) != reference.scales.get(name)]
    return weights + scales


def changed_attributes(built: Built, reference: Reference) -> dict[str, Any]:
    """Plain attributes that differ from the model as built, by path; values are plain data that may hold tensors."""
    return {
        path: value
        for path, value in _attributes(built)
        if path not in reference.attributes or not _equal(value, reference.attributes[path])
    }


def write_back(built: Built, tensors: Mapping[str, torch.Tensor], attributes: Mapping[str, Any]) -> None:
    """Put changed tensors and attributes back into a freshly built model."""
    here = dict(_frozen(built))
    with torch.no_grad():
        for name, tensor in tensors.items():
            here[name].copy_(tensor)
    owners = dict(_owners(built))
    for path, value in attributes.items():
        owner, _, attribute = path.rpartition("/")
        setattr(owners[owner], attribute, _on(value, built.device))


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _on(item, device) for key, item in value.items()}
    return [_on(item, device) for item in value] if isinstance(value, list) else value


def checksum(tensor: torch.Tensor) -> int:
    """A sum over the tensor's bytes taken as integers: one changed weight changes it. Not a digest."""
    flat = tensor.detach().contiguous().view(-1)
    if flat.numel() == 0:
        return 0
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if flat.dtype.is_complex:
        flat = torch.view_as_real(flat).reshape(-1)
    return int(flat.view(integers[flat.element_size()]).sum(dtype=torch.int64))


def _checked(name: str, tensor: torch.Tensor, built: Built) -> int | str:
    """A checksum of a base weight; a digest of anything else, which a method may only rearrange (a mask that moves)."""
    if _is_base(name, built) or tensor.is_meta:
        return checksum(tensor)
    raw = tensor.detach().to("cpu").contiguous().view(-1)
    return hashlib.sha256(raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b"").hexdigest()


def _version(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor._version, tensor.data_ptr() if not tensor.is_meta else 0


def _frozen(built: Built) -> Iterator[tuple[str, torch.Tensor]]:
    """Plain tensors by name; those that lie in one of few bits stand behind its name."""
    for name, parameter in built.model.named_parameters():
        if not parameter.requires_grad:
            yield from precision.plain_tensors(name, parameter)
    for name, buffer in built.model.named_buffers():
        yield from precision.plain_tensors(f"buffer:{name}", buffer)


def _is_base(name: str, built: Built) -> bool:
    return name.partition("/")[0] in built.base_names


def _owners(built: Built) -> Iterator[tuple[str, Any]]:
    """Objects whose plain attributes may change: the config, modules of the library that it is from, their helpers."""
    if built.adapter is None:
        return
    library = _library(built.adapter)
    for name, module in built.model.named_modules():
        if _library(module) != library:
            continue
        yield f"module:{name}", module
        for attribute, value in vars(module).items():
            if _library(value) == library and not isinstance(value, nn.Module) and _has_attributes(value):
                yield f"helper:{name}.{attribute}", value
    yield "config", built.adapter


def _library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _has_attributes(value: Any) -> bool:
    return getattr(value, "__dict__", None) is not None


def _attributes(built: Built) -> Iterator[tuple[str, Any]]:
    for path, owner in _owners(built):
        for attribute, value in vars(owner).items():
            if attribute in _HOUSEKEEPING or attribute.startswith("_"):
                continue
            if _plain(value):
                yield f"{path}/{attribute}", _copy(value)


def _plain(value: Any) -> bool:
    if value is None or isinstance(value, (bool, int, float, str)):
        return True
    if isinstance(value, torch.Tensor):
        return not isinstance(value, nn.Parameter)
    if type(value) is dict:
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    return type(value) is list and all(_plain(item) for item in value)


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list):
        same_length = isinstance(other, list) and len(one) == len(other)
        return same_length and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)
