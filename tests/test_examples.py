"""The examples run: on tiny models and local rows, with the settings that a user would give them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import documents
import toy

EXAMPLES = documents.ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.sh"))
SMALL = ("data.forgetting=null", "batch.per_device_train_batch_size=4", "batch.per_device_eval_batch_size=8")


def call(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with this environment's programs first and one thread."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def record_of(folder: Path) -> dict[str, Any]:
    [path] = [found for name in ("results", "temporary_results") for found in (folder / name).glob("*.json")]
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def rows(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> tuple[str, ...]:
    """Write local rows and the settings that put them in the place of a config's data set."""
    folder.mkdir()
    for split, found in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return tuple(
        setting
        for part in ("train", "valid")
        for setting in (f"task.{part}.dataset={folder}", f"task.{part}.subset=null")
    )


def mathematics(tmp_path: Path, num_rows: int = 230) -> tuple[str, ...]:
    """A small causal model and worked answers with the columns of MetaMathQA."""
    toy.save_model(tmp_path / "model")
    found = [
        {"query": f"What is {row['question']}?", "response": f"Sum. The answer is: {row['answer']}"}
        for row in toy.rows(num_rows)
    ]
    data = rows(tmp_path / "rows", {"train": found})
    quick = ("generation.max_new_tokens=4", "data.max_length=256", "task.valid.split=train[:8]")
    plain = ("optim.optimizer=AdamW", "model.dtype=float32", "train.mixed_precision=no")
    return (f"model.id={tmp_path / 'model'}", *data, *SMALL, *quick, *plain)


SHORT = ("train.max_steps=4", "train.eval_steps=2")


def header(script: Path) -> list[list[str]]:
    """The settings of the commands that a script's first lines show, but for the model."""
    calls = [
        line.split() for line in script.read_text().splitlines() if line.startswith(f"#   examples/{script.name} ")
    ]
    return [[word for word in call[2:] if not word.startswith("model.id=")] for call in calls]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one_and_stops_at_the_first_error(script: Path) -> None:
    text = script.read_text(encoding="ascii")
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text and os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    assert '"$@"' in text, "takes settings"


def test_the_page_names_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"examples/{path.name}" in text for path in EXAMPLES.iterdir() if path.suffix in (".sh", ".py"))


@pytest.mark.slow
def test_quick_start(tmp_path: Path) -> None:
    toy.save_model(tmp_path / "model")
    task = toy.write_task(tmp_path / "task", train=120)
    words = [f"model.id={tmp_path / 'model'}", "model.revision=null", f"task={task}", "data.test_rows=12", "seed=3"]
    example = [sys.executable, str(EXAMPLES / "quick_start.py")]
    done = call([*example, *words, "train.num_train_epochs=1"], tmp_path)
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path)
    assert record["status"] == "finished" and record["seed"] == 3 and record["training"]["step"] == 10
    assert " base: exact_match " in done.stdout and " last: exact_match " in done.stdout
    wrong = call([*example, "train.max_stepz=1"], tmp_path)
    assert wrong.returncode == 1 and "max_stepz" in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_train_glue(tmp_path: Path) -> None:
    toy.save_model(tmp_path / "model", "roberta")
    found = [
        {"sentence1": row["question"], "sentence2": row["answer"], "label": len(row["answer"]) % 2, "idx": number}
        for number, row in enumerate(toy.rows(64))
    ]
    data = rows(tmp_path / "rows", {"train": found[:40], "validation": found[40:52], "test": found[52:]})
    data += (f"task.test.dataset={tmp_path / 'rows'}", "task.test.subset=null")
    script = str(EXAMPLES / "train_glue.sh")
    done = call([script, f"model.id={tmp_path / 'model'}", *data, *SMALL, "train.num_train_epochs=2"], tmp_path)
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path)
    assert record["status"] == "finished" and record["training"]["step"] <= 20 and record["task"] == "glue_mrpc"
    assert {one["part"] for one in record["evaluations"]} >= {"valid", "test"}
    assert (tmp_path / "outputs" / "glue_mrpc" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_train_metamath(tmp_path: Path) -> None:
    """As its first lines call it, with the batch and all but the model and the lengths as they stand."""
    [words] = header(EXAMPLES / "train_metamath.sh")
    done = call([str(EXAMPLES / "train_metamath.sh"), *mathematics(tmp_path, 1200), *words], tmp_path)
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path)
    assert record["status"] == "finished" and record["training"]["step"] == 30
    assert [one["checkpoint"] for one in record["evaluations"] if one["part"] == "valid"] == [10, 20, 30]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_by_either_launcher_are_one_run(tmp_path: Path, launcher: str) -> None:
    done = call([str(EXAMPLES / "train_multi_gpu.sh"), *mathematics(tmp_path), *SHORT], tmp_path, LAUNCHER=launcher)
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path)
    assert record["status"] == "finished" and record["provenance"]["num_processes"] == 2


def test_another_launcher_is_an_error(tmp_path: Path) -> None:
    done = call([str(EXAMPLES / "train_multi_gpu.sh")], tmp_path, LAUNCHER="mpirun")
    assert done.returncode == 2 and "torchrun or accelerate" in done.stderr
