"""Would torch's DataLoader be faster than collating in the loop? Milliseconds a batch, side by side.

python benchmarks/data_loader.py [--rows 4] [--steps 400]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from peftlab.config import loading
from peftlab.modelling import models
from peftlab.rows import data, tokenise
from peftlab.rows.batching import Stream, collate

ROOT = Path(__file__).resolve().parent.parent


def token_rows(batch: int) -> tuple[Any, list[Any], int]:
    """Rows of worked word problems, as long as real ones."""
    overrides = {"batch.per_device_train_batch_size": batch, "data.train_rows": 4000}
    resolved = loading.load(ROOT / "experiments/lora/smollm2-135m-r16", task="gsm_symbolic", overrides=overrides)
    tokenizer = models.load_tokenizer(resolved.model)
    rows, _ = tokenise.tokenise(data.load(resolved).train, tokenizer, kind="causal", max_length=768, loss_mask="answer")
    return resolved, rows, tokenizer.eos_token_id


def in_loop(resolved: Any, rows: list[Any], pad_id: int, steps: int) -> Iterator[Any]:
    """peftlab's own way."""
    stream = Stream(rows, resolved.batch, 0)
    for _ in range(steps):
        for micro in next(stream).micro_batches:
            yield collate(micro, pad_id=pad_id)


def loader(resolved: Any, rows: list[Any], pad_id: int, steps: int, workers: int) -> Iterator[Any]:
    """The same batches through a DataLoader."""
    numbers = {id(row): index for index, row in enumerate(rows)}
    stream = Stream(rows, resolved.batch, 0)
    order = [[numbers[id(row)] for row in micro] for _ in range(steps) for micro in next(stream).micro_batches]
    found: DataLoader[Any] = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_sampler=order,
        collate_fn=partial(collate, pad_id=pad_id),
        num_workers=workers,
    )
    yield from found


def milliseconds(batches: Iterator[Any], steps: int) -> float:
    """Mean wall milliseconds a batch."""
    started = time.perf_counter()
    count = sum(1 for _ in batches)
    assert count == steps
    return (time.perf_counter() - started) / steps * 1000


def main() -> None:
    """Three repetitions, alternating."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    resolved, rows, pad_id = token_rows(options.rows)
    ways: dict[str, Callable[[], Iterator[Any]]] = {
        "in the loop": lambda: in_loop(resolved, rows, pad_id, options.steps),
        "DataLoader, 0 workers": lambda: loader(resolved, rows, pad_id, options.steps, 0),
        "DataLoader, 1 worker": lambda: loader(resolved, rows, pad_id, options.steps, 1),
        "DataLoader, 2 workers": lambda: loader(resolved, rows, pad_id, options.steps, 2),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            found[name].append(milliseconds(way(), options.steps))
    for name, values in found.items():
        print(f"{name:24} {statistics.median(values):7.2f} ms a batch of {options.rows} rows")


if __name__ == "__main__":
    main()
