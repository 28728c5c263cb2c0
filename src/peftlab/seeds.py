"""Named random streams: every consumer draws from its own, derived from (seed, name).

`order`, `adapter`, `dropout` and `sampling` come from the run's `seed`; `rows` and `split` from `data_seed`. A new
consumer shifts no other. Importing this file loads no torch; `seeded` and `reseed` do.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np

STREAMS = ("order", "adapter", "dropout", "sampling", "rows", "split")


def derive(seed: int, name: str, *parts: object) -> int:
    """A 63-bit seed for stream `name` of `seed`, further split by `parts` (a step, an epoch, a rank)."""
    if name not in STREAMS:
        raise ValueError(f"unknown random stream {name!r}; the streams are {STREAMS}")
    text = "/".join([str(seed), name, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, name: str, *parts: object) -> np.random.Generator:
    """A numpy generator of stream `name`: PCG64, whose sequence numpy keeps stable."""
    return np.random.Generator(np.random.PCG64(derive(seed, name, *parts)))


def reseed(seed: int, name: str, *parts: object) -> None:
    """Set the global states of random, numpy and torch (all devices) to stream `name`."""
    import torch

    value = derive(seed, name, *parts)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


@contextlib.contextmanager
def seeded(seed: int, name: str, *parts: object) -> Iterator[None]:
    """Run the body on stream `name`, then put all global random states back as they were."""
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        reseed(seed, name, *parts)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
