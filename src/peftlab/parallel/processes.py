"""The processes of one launch: who leads, and the few sums and messages that they exchange.

All processes of a launch are one run. The leader (rank 0) claims, decides and writes; the others do what it says
(`following.py`). Messages are JSON, never pickles. Starting processes is the business of `torchrun` and
`accelerate launch`; nothing here knows a model or a setting.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from peftlab.errors import UserError

_PATIENCE = timedelta(hours=2)
"""A leader that writes or scores alone must not look dead; a process that dies is noticed by its connection."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of this launch, seen from one of them."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process claims, decides and writes."""
        return self.rank == 0


def world() -> World:
    """The launch that this process has joined; a world of one when it has joined none."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return World()
    return World(rank=distributed.get_rank(), size=distributed.get_world_size())


def join(declared: int) -> World:
    """Join the processes that a launcher started.

    Args:
        declared: `launch.num_processes`.

    Raises:
        UserError: The launcher started another number of processes.
    """
    started = int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else 1
    if started != declared:
        raise UserError(
            f"launch.num_processes = {declared}, but the launcher started {started}",
            fix=f"start it with: torchrun --nproc-per-node {declared} -m peftlab run ...",
        )
    if started > 1 and not distributed.is_initialized():
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        with together():
            distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    return world()


def leave() -> None:
    """Close the connections: processes that still wait for this one are told by their error."""
    if world().size > 1:
        distributed.destroy_process_group()


# -------------------------------------------------------------------------------------------------------- exchanging


def summed(*values: float) -> list[float]:
    """Each number summed over all processes, in float64."""
    if world().size == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=_device())
    with together():
        distributed.all_reduce(tensor)
    return [float(value) for value in tensor]


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes; one that had no rows of a step counts as zero."""
    if world().size == 1:
        return
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
        ours = [parameter for parameter in parameters if parameter.dtype == dtype]
        for parameter in ours:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in ours if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with together():
            distributed.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def agree(value: float, what: str) -> None:
    """Raise unless `value` is the same on all processes.

    Raises:
        RuntimeError: It is not: the processes went apart, and whatever they computed is worth nothing.
    """
    found = merged({world().rank: value})
    if len(set(found.values())) > 1:
        raise RuntimeError(f"the processes of this launch disagree about {what}: {list(found.values())}")


def tell(**message: Any) -> None:
    """What the leader says to all others; they are in `listen`."""
    if world().size > 1:
        _broadcast(json.dumps(message).encode())


def listen() -> Mapping[str, Any]:
    """What the leader says."""
    found: Mapping[str, Any] = json.loads(_broadcast(None))
    return found


def merged(part: Mapping[int, Any]) -> dict[int, Any]:
    """The union of what each process found, by number; plain data."""
    here = world()
    if here.size == 1:
        return dict(part)
    ours = torch.frombuffer(bytearray(json.dumps(list(part.items())).encode()), dtype=torch.uint8)
    sizes = [int(size) for size in _gathered(torch.tensor([len(ours)]))]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(ours)] = ours
    texts = [bytes(one[:size].tolist()) for one, size in zip(_gathered(padded), sizes, strict=True)]
    return {number: value for text in texts for number, value in json.loads(text)}


def _gathered(tensor: torch.Tensor) -> list[torch.Tensor]:
    moved = tensor.to(_device())
    found = [torch.empty_like(moved) for _ in range(world().size)]
    with together():
        distributed.all_gather(found, moved)
    return [one.cpu() for one in found]


def _broadcast(message: bytes | None) -> bytes:
    size = torch.tensor([len(message or b"")], device=_device())
    with together():
        distributed.broadcast(size, src=0)
        if message is None:
            content = torch.zeros(int(size), dtype=torch.uint8, device=_device())
        else:
            content = torch.frombuffer(bytearray(message), dtype=torch.uint8).to(_device())
        distributed.broadcast(content, src=0)
    return bytes(content.cpu().tolist())


def _device() -> torch.device:
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")


@contextmanager
def together() -> Iterator[None]:
    """Around calls that all processes make together: they fail when another process has ended.

    Raises:
        UserError: One has. Other errors pass.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):  # gloo has no type of its own
            raise
        raise UserError(
            f"another process of this launch ended or cannot be reached ({str(error).splitlines()[0][:160]})",
            fix="read what it said before it ended; the same command goes on from the last checkpoint",
        ) from error
