"""How many greedy answers, and how many scores, change with the batch they are made in.

    python benchmarks/batch_effect.py [--task gsm8k] [--rows 48] [--dtype bfloat16] [--tokens 64] [--model ID]

The same rows are answered by the same model in batches of several sizes and in two orders; every way is held against
the first. It needs the small real model, and a mirror of the data (PEFTLAB_MIRROR).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from peftlab.config import loading
from peftlab.modelling import models
from peftlab.rows import data
from peftlab.scores import evaluation
from peftlab.scores.grading import Scored

WAYS = ((16, "length"), (16, "file"), (8, "length"), (48, "length"))
EXPERIMENT = Path(__file__).resolve().parent.parent / "experiments" / "lora" / "smollm2-135m-r16"


def _drained(scoring: Any) -> Scored:
    while True:
        try:
            next(scoring)
        except StopIteration as stop:
            found: Scored = stop.value
            return found


def _changed(one: Scored, other: Scored) -> tuple[int, dict[str, int]]:
    """How many predictions differ, and by metric how many outcomes."""
    said = sum(
        mine["prediction"].get(name) != its["prediction"].get(name)
        for mine, its in zip(one.samples, other.samples, strict=True)
        for name in ("text" if "text" in mine["prediction"] else "index",)
    )
    return said, {name: int((values != other.outcomes[name]).sum()) for name, values in one.outcomes.items()}


def main() -> None:
    """One line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--model")
    asked = parser.parse_args()
    plain: dict[str, Any] = {"model.dtype": asked.dtype, "data.test_rows": asked.rows, "task": asked.task}
    if asked.model:
        plain["model.id"] = asked.model
    built, first = None, None
    for size, order in WAYS:
        overrides = {**plain, "batch.per_device_eval_batch_size": size, "batch.eval_order": order}
        spec = loading.load(EXPERIMENT, overrides=overrides)
        if spec.task.kind == "generate":
            spec = loading.load(EXPERIMENT, overrides={**overrides, "generation.max_new_tokens": asked.tokens})
        built = built or models.bare(models.load(spec.model, "causal"))
        started = time.perf_counter()
        found = _drained(evaluation.score(built, data.load(spec).test, spec))
        shown = ", ".join(f"{name} {metric.mean:.3f}" for name, metric in found.metrics.items())
        if first is not None:
            said, outcomes = _changed(first, found)
            changed = ", ".join(f"{count} of {name}" for name, count in outcomes.items())
            shown += f"; changed: {said} of {asked.rows} answers, {changed}"
        first = first or found
        print(f"batches of {size}, by {order}: {shown}; {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
