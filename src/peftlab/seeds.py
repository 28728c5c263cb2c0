"""Named random streams: every consumer draws from its own, derived from (seed, name).

`order`, `adapter`, `dropout` and `sampling` come from the run's `seed`; `rows` and `split` from `data_seed`. A new
consumer shifts no other. Sets no global state: `randomness.py` does.
"""

from __future__ import annotations

import hashlib

import numpy as np

STREAMS = ("order", "adapter", "dropout", "sampling", "rows", "split")


def derive(seed: int, name: str, *parts: object) -> int:
    """A 63-bit seed for stream `name` of `seed`, further split by `parts` (a step, an epoch, a rank)."""
    if name not in STREAMS:
        raise ValueError(f"unknown random stream {name!r}; the streams are {STREAMS}")
    text = "/".join([str(seed), name, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def ranked(count: int, seed: int, name: str, *parts: object) -> list[int]:
    """The numbers below `count` in a random order of stream `name`: by raw 64-bit draws, which numpy keeps stable."""
    draws = generator(seed, name, *parts).bit_generator.random_raw(count)
    order: list[int] = np.argsort(draws, kind="stable").tolist()
    return order


def generator(seed: int, name: str, *parts: object) -> np.random.Generator:
    """A numpy generator of stream `name`: PCG64, whose sequence numpy keeps stable."""
    return np.random.Generator(np.random.PCG64(derive(seed, name, *parts)))
