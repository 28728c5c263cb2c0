"""Bucketed against shuffled batches on real rows: tokens per second, padding, and where the loss ends.

Two trainings of the same experiment advance in turn, one step each, so that whatever else the machine does falls on
both. The loss at the end is measured on the same held-out rows for both.

Usage: PEFTLAB_MIRROR=FOLDER python benchmarks/batch_order.py [--steps 100] [--rows 4] [--task gsm8k]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ORDERS = ("bucketed", "shuffled")


def main() -> None:
    """Train both, print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="experiments/lora/smollm2-135m-r16")
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from peftlab.config import loading
    from peftlab.loop import preparation, training
    from peftlab.rows import data
    from peftlab.scores import scoring

    sides: dict[str, dict[str, Any]] = {}
    for order in ORDERS:
        overrides = {
            "batch.order": order,
            "batch.per_device_train_batch_size": options.rows,
            "train.max_steps": options.steps,
            "optim.learning_rate": 3e-4,
            "data.forgetting": None,
        }
        spec = loading.load(ROOT / options.experiment, task=options.task, seed=options.seed, overrides=overrides)
        rows = data.load(spec)
        ready = preparation.prepare(spec, rows, scoring.load_base(spec))
        steps = training.steps(ready.built, ready.stream, spec, ready.state)
        sides[order] = {
            "spec": spec,
            "ready": ready,
            "rows": rows,
            "steps": steps,
            "seconds": [],
            "tokens": [],
            "loss": [],
        }
    for number in range(options.steps):
        for order in ORDERS if number % 2 == 0 else ORDERS[::-1]:
            side = sides[order]
            step = next(side["steps"])
            side["seconds"].append(step.seconds)
            side["tokens"].append(step.tokens)
            side["loss"].append(step.loss)
        if (number + 1) % 10 == 0:
            print(f"step {number + 1} of {options.steps}", flush=True)
    speeds = {order: sum(side["tokens"]) / sum(side["seconds"]) for order, side in sides.items()}
    for order, side in sides.items():
        print(
            f"{order}: {speeds[order]:.0f} tokens/s, {sum(side['seconds']):.0f} s, {sum(side['tokens'])} tokens, "
            f"mean loss of the last quarter {statistics.mean(side['loss'][-options.steps // 4 :]):.4f}, "
            f"held-out loss {_held_out(side):.4f}"
        )
    print(f"tokens/s, bucketed over shuffled: {speeds['bucketed'] / speeds['shuffled']:.3f}")


def _held_out(side: dict[str, Any], *, size: int = 8, count: int = 96) -> float:
    """Loss per answer token over the first test rows, longest first, padding never counted."""
    import torch

    from peftlab.loop import loss
    from peftlab.loop.training import forward
    from peftlab.rows import tokenise
    from peftlab.rows.batching import collate

    built, spec = side["ready"].built, side["spec"]
    rows, _ = tokenise.tokenise(
        side["rows"].test[:count], built.tokenizer, kind=built.kind, max_length=spec.data.max_length, loss_mask="answer"
    )
    rows = sorted(rows, key=lambda row: -len(row.ids))
    built.model.eval()
    total, tokens = 0.0, 0
    started = time.perf_counter()
    with torch.no_grad():
        for start in range(0, len(rows), size):
            batch = collate(rows[start : start + size], pad_id=built.pad_id)
            found = loss.from_logits(forward(built, batch).logits, batch)
            total, tokens = total + float(found.unweighted), tokens + found.count
    print(f"held-out rows scored in {time.perf_counter() - started:.0f} s", flush=True)
    return total / tokens


if __name__ == "__main__":
    main()
