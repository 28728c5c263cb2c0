"""The global random states of random, numpy and torch, set to a named stream; the only place that touches them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

from peftlab import seeds


def reseed(seed: int, name: str, *parts: object) -> None:
    """Set the global states of random, numpy and torch (all devices) to stream `name`."""
    value = seeds.derive(seed, name, *parts)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


@contextlib.contextmanager
def seeded(seed: int, name: str, *parts: object) -> Iterator[None]:
    """Run the body on stream `name`, then put all global random states back as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        reseed(seed, name, *parts)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
