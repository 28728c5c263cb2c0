"""Tokens per second of peftlab's loop against TRL's SFTTrainer with its defaults, on the same rows.

TRL lives in an environment of its own (`pip install trl torch peft`); name its Python. Both train one LoRA on one
model in one precision with as many rows a batch; order, padding, loss and logging are each one's own default.

    python benchmarks/sft_trainer.py --trl-python other/bin/python [--steps 8] [--repetitions 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = ROOT / "experiments" / "lora" / "smollm2-135m-r16"


def resolve(options: argparse.Namespace) -> Any:
    """The spec that both sides follow."""
    from peftlab.config import loading

    overrides = {
        "train.max_steps": options.steps,
        "model.dtype": options.dtype,
        "batch.per_device_train_batch_size": options.rows,
        "data.train_rows": 400,
    }
    return loading.load(EXPERIMENT, task="gsm_symbolic", overrides=overrides)


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """peftlab's own loop."""
    from peftlab.loop import training
    from peftlab.modelling import adapting, models
    from peftlab.rows import data, tokenise
    from peftlab.rows.batching import Stream

    resolved = resolve(options)
    built = adapting.adapt(models.load(resolved.model, "causal"), resolved)
    rows, _ = tokenise.tokenise(
        data.load(resolved).train, built.tokenizer, kind="causal", max_length=512, loss_mask="answer"
    )
    steps = list(training.steps(built, Stream(rows, resolved.batch, 0), resolved, training.start(built, resolved)))[1:]
    return {"speed": sum(step.tokens for step in steps) / sum(step.seconds for step in steps)}


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """What the other environment needs: rows as text, the model's folder, the adapter."""
    from peftlab.modelling import models
    from peftlab.rows import data

    resolved = resolve(options)
    rows = [{"prompt": row.prompt, "completion": row.target} for row in data.load(resolved).train]
    model, _ = models.source_of(resolved.model)
    plain = {"rows": rows, "model": model, "adapter": resolved.adapter, "learning_rate": resolved.optim.learning_rate}
    (folder / "job.json").write_text(json.dumps(plain))


def theirs(options: argparse.Namespace) -> dict[str, Any]:
    """SFTTrainer; needs no peftlab. Tokens are those under the attention mask."""
    import time

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    job = json.loads((Path(options.folder) / "job.json").read_text())
    tokens, marks = [0], []

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Notes when each step begins and ends."""

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            """Start of a step."""
            marks.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            """End of a step."""
            marks[-1] = time.perf_counter() - marks[-1]

    config = SFTConfig(
        output_dir=options.folder,
        per_device_train_batch_size=options.rows,
        max_steps=options.steps,
        learning_rate=job["learning_rate"],
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        logging_steps=1,
        model_init_kwargs={"dtype": options.dtype},
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    adapter = {key: value for key, value in job["adapter"].items() if key != "peft_type"}
    trainer = SFTTrainer(
        job["model"], args=config, train_dataset=Dataset.from_list(job["rows"]), peft_config=LoraConfig(**adapter)
    )
    trainer.add_callback(Clock())
    collate = trainer.data_collator
    counts: list[int] = []

    def counting(rows: Any) -> Any:
        batch = collate(rows)
        counts.append(int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel())
        return batch

    trainer.data_collator = counting
    torch.manual_seed(0)
    trainer.train()
    tokens = counts[: len(marks)]
    return {"speed": sum(tokens[1:]) / sum(marks[1:])}


def child(python: str, side: str, options: argparse.Namespace, folder: str) -> float:
    """Run one side in a process of its own."""
    arguments = [
        f"--{key.replace('_', '-')}={value}" for key, value in vars(options).items() if key not in ("side", "folder")
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "GOMP_SPINCOUNT": "1000",
    }
    done = subprocess.run(
        [python, __file__, f"--side={side}", f"--folder={folder}", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr[-3000:])
    return float(json.loads(done.stdout.splitlines()[-1])["speed"])


def main() -> None:
    """Alternate the two and print the median ratio with its range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default=sys.executable)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--side", choices=["all", "ours", "theirs"], default="all")
    parser.add_argument("--folder", default="")
    options = parser.parse_args()
    if options.side != "all":
        print(json.dumps({"ours": ours, "theirs": theirs}[options.side](options)))
        return
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(options, Path(folder))
        for repetition in range(options.repetitions):
            mine = child(sys.executable, "ours", options, folder)
            other = child(options.trl_python, "theirs", options, folder)
            ratios.append(mine / other)
            print(
                f"repetition {repetition + 1}: peftlab {mine:.0f}, SFTTrainer {other:.0f} tokens/s, {ratios[-1]:.2f}",
                flush=True,
            )
    print(f"median ratio {statistics.median(ratios):.2f} (range {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
