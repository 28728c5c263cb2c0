"""Tokens per second of peftlab's loop against a plain loop, and what peftlab adds around its bare steps.

Same model, rows, batches, padding, precision, threads, optimizer and attention; the losses must agree to 1e-5. The two
alternate, each repetition in a process of its own, and the result is a ratio: machines are shared and noisy.

    python benchmarks/train_step.py [--adapter lora|full] [--dtype float32] [--steps 8] [--repetitions 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = {"lora": "lora/smollm2-135m-r16", "full": "full-finetuning/smollm2-135m"}
RATE = 1e-4


def prepared(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The spec, the built model and its token rows."""
    from peftlab.config import loading
    from peftlab.modelling import adapting, models
    from peftlab.rows import data, tokenise

    overrides = {
        "optim.learning_rate": RATE,
        "optim.lr_scheduler_type": "constant",
        "optim.warmup_steps": 0,
        "train.max_steps": options.steps,
        "model.dtype": options.dtype,
        "batch.per_device_train_batch_size": options.rows,
        "data.train_rows": 400,
    }
    resolved = loading.load(ROOT / "experiments" / EXPERIMENT[options.adapter], task=options.task, overrides=overrides)
    built = adapting.adapt(models.load(resolved.model, "causal"), resolved)
    rows, _ = tokenise.tokenise(
        data.load(resolved).train, built.tokenizer, kind="causal", max_length=512, loss_mask="answer"
    )
    return resolved, built, rows


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """peftlab's own loop, bare."""
    from peftlab.loop import training
    from peftlab.rows.batching import Stream

    resolved, built, rows = prepared(options)
    steps = list(training.steps(built, Stream(rows, resolved.batch, 0), resolved, training.start(built, resolved)))
    seconds, tokens = [s.seconds for s in steps], [s.tokens for s in steps]
    return {"losses": [s.loss for s in steps], "seconds": seconds, "tokens": tokens}


def plain(options: argparse.Namespace) -> dict[str, Any]:
    """The plain loop over the same batches from the same start."""
    import plain_loop
    import torch

    from peftlab import seeds
    from peftlab.modelling import models
    from peftlab.rows.batching import Stream

    resolved, built, rows = prepared(options)
    stream = Stream(rows, resolved.batch, 0)
    chosen = [next(stream).micro_batches for _ in range(options.steps)]
    steps = [[[(row.ids, row.labels_from) for row in micro] for micro in step] for step in chosen]
    folder, _ = models.source_of(resolved.model)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    seed = seeds.derive(resolved.seed, "adapter")
    losses, seconds = plain_loop.run(folder, resolved.adapter, dtype, steps, built.pad_id, RATE, seed)
    return {"losses": losses, "seconds": seconds, "tokens": [sum(len(r.ids) for m in s for r in m) for s in chosen]}


def around(options: argparse.Namespace) -> dict[str, Any]:
    """A whole run's wall time from its first step to its last, and of the bare steps in it."""
    import tempfile
    import time

    from peftlab.config import loading
    from peftlab.events import Step
    from peftlab.job import runs
    from peftlab.records.store import RunStore

    overrides = {
        "train.max_steps": options.steps,
        "train.evaluate": "none",
        "batch.per_device_train_batch_size": options.rows,
        "data.train_rows": 400,
    }
    resolved = loading.load(ROOT / "experiments" / EXPERIMENT[options.adapter], task=options.task, overrides=overrides)
    bare, first, last = 0.0, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for event in runs.events(resolved, RunStore(Path(folder) / "results")):
            if isinstance(event, Step):
                last = time.perf_counter()
                first = first or last - event.seconds
                bare += event.seconds
    return {"wall": last - first, "bare": bare}


def child(options: argparse.Namespace, side: str) -> dict[str, Any]:
    """Run one side in a process of its own."""
    arguments = [f"--{key}={value}" for key, value in vars(options).items() if key != "side"]
    done = subprocess.run(
        [sys.executable, __file__, f"--side={side}", *arguments],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": str(options.threads)},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(options: argparse.Namespace) -> None:
    """Alternate the two sides and print the median ratio with its range."""
    ratios = []
    for repetition in range(options.repetitions):
        first, second = ("ours", "plain") if repetition % 2 == 0 else ("plain", "ours")
        found = {first: child(options, first), second: child(options, second)}
        pairs = list(zip(found["ours"]["losses"], found["plain"]["losses"], strict=True))
        worst = max(abs(a - b) / abs(b) for a, b in pairs)
        if worst > 1e-5:
            raise SystemExit(f"the two sides do not train the same: losses differ by {worst:.1e}")
        speed = {side: sum(f["tokens"][1:]) / sum(f["seconds"][1:]) for side, f in found.items()}
        ratios.append(speed["ours"] / speed["plain"])
        print(
            f"repetition {repetition + 1}: peftlab {speed['ours']:.0f} tokens/s, plain {speed['plain']:.0f} tokens/s, "
            f"ratio {ratios[-1]:.3f}; losses differ by at most {worst:.1e}",
            flush=True,
        )
    print(f"{options.adapter} {options.dtype}: median ratio {statistics.median(ratios):.3f} "
          f"(range {min(ratios):.3f} to {max(ratios):.3f})")  # fmt: skip


def main() -> None:
    """Parse the options and run one side, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", choices=sorted(EXPERIMENT), default="lora")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--task", default="gsm_symbolic")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--side", choices=["ours", "plain", "around", "all", "overhead"], default="all")
    options = parser.parse_args()
    if options.side == "all":
        compare(options)
    elif options.side == "overhead":
        found = child(options, "around")
        print(f"{options.adapter}: wall {found['wall']:.2f} s, bare steps {found['bare']:.2f} s, "
              f"overhead {found['wall'] / found['bare'] - 1:.2%} over {options.steps} steps")  # fmt: skip
    else:
        print(json.dumps({"ours": ours, "plain": plain, "around": around}[options.side](options)))


if __name__ == "__main__":
    main()
