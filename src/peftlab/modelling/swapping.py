"""One loaded base under several adapters in turn. Decides nothing about what is scored, and scores nothing.

Putting an adapter on replaces modules of the base, adds hooks to them, freezes parameters. What a base looked like is
noted when it is loaded (`look`), module by module, and put back before the next adapter (`put_back`), whatever the
method did: no method has to know how it is taken off. What cannot be put back shows in the bits of its tensors or in
its config; such a base is loaded afresh. So are the weights of full fine-tuning, which have no base.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftlab.config.spec import RunSpec
from peftlab.digest import digest
from peftlab.modelling import models, weights
from peftlab.modelling.models import Base, Built


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a base looked like.

    Attributes:
        modules: Every module with its attributes; containers are copies.
        trained: Every parameter with whether it asks for a gradient.
        bits: By name a sum over the bits of each tensor; None: one of them has none that can be read.
        config: As plain data.
    """

    modules: tuple[tuple[nn.Module, Mapping[str, Any]], ...]
    trained: tuple[tuple[nn.Parameter, bool], ...]
    bits: Mapping[str, int] | None
    config: Mapping[str, Any]


def look(model: nn.Module) -> Look:
    """Note what a model looks like now."""
    return Look(
        modules=tuple((module, _copied(vars(module))) for module in model.modules()),
        trained=tuple((parameter, parameter.requires_grad) for parameter in model.parameters()),
        bits=_bits(model),
        config=copy.deepcopy(_config(model)),
    )


def put_back(model: nn.Module, before: Look) -> bool:
    """Give every module its attributes again, and every parameter its flag; says whether the model is what it was."""
    for module, attributes in before.modules:
        vars(module).clear()
        vars(module).update(_copied(attributes))
    for parameter, trained in before.trained:
        parameter.requires_grad_(trained)
        parameter.grad = None
    return before.bits is not None and _bits(model) == before.bits and _config(model) == before.config


def _copied(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a module; its containers (children, parameters, hooks) as copies, what they hold as it is."""
    plain = (dict, list, set)
    return {name: copy.copy(value) if isinstance(value, plain) else value for name, value in attributes.items()}


def _config(model: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = model.config.to_dict()
    return found


def _bits(model: nn.Module) -> Mapping[str, int] | None:
    """A sum over the bits of every tensor by name; of tensors that are no plain memory there is none."""
    found = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        data = tensor.data
        if type(data) is not torch.Tensor or data.device.type == "meta":
            return None
        flat = data.contiguous().view(-1).view(torch.uint8)
        whole = flat.numel() // 4 * 4
        words = flat[:whole].view(torch.int32).sum(dtype=torch.int64)
        found[name] = int(words) + int(flat[whole:].sum(dtype=torch.int64))
    return found


class Bases:
    """Hands out bases and trained models; of one base after another a single one is held.

    A model handed out is good until the next one is asked for.
    """

    def __init__(self) -> None:
        self._held: tuple[str, Base, Look] | None = None
        self._touched = False
        self._trained: tuple[str, Built] | None = None

    def holds(self, spec: RunSpec) -> bool:
        """Whether the base of a run is here; an adapter may be on it."""
        return self._held is not None and self._held[0] == self.key(spec)

    def base(self, spec: RunSpec) -> Base:
        """The bare base of a run: the one that is held, or loaded.

        Raises:
            UserError: It cannot be loaded.
        """
        key = self.key(spec)
        self._trained = None
        if self._held is not None and not self._is_clean(key):
            self._held = None
        self._touched = False
        if self._held is None:
            loaded = models.load(
                spec.model, models.kind_of(spec), labels=spec.task.labels, seed=spec.seed, quant=spec.quant
            )
            self._held = (key, loaded, look(loaded.model))
        return self._held[1]

    def _is_clean(self, key: str) -> bool:
        assert self._held is not None
        held, base, before = self._held
        return held == key and (not self._touched or put_back(base.model, before))

    def trained(self, spec: RunSpec, folder: Path) -> Built:
        """The saved weights in `folder` on the base of their run, `spec`.

        Raises:
            UserError: They are missing or damaged.
        """
        named = f"{folder.resolve()} {self.key(spec)}"
        if self._trained is not None and self._trained[0] == named:
            return self._trained[1]
        base = None
        if spec.adapter is None:
            self._held = self._trained = None  # room for weights of that size
        else:
            base = self.base(spec)
            self._touched = True
        built = weights.load_trained(spec, folder, base=base)
        self._trained = (named, built)
        return built

    @staticmethod
    def key(spec: RunSpec) -> str:
        """Names the base of a run: equal keys mean equal weights, in equal arithmetic, with an equal head."""
        kind = models.kind_of(spec)
        head = {"labels": list(spec.task.labels), "seed": spec.seed} if kind == "classify" else {}
        return digest({"model": spec.base_identity(), "kind": kind, **head})
