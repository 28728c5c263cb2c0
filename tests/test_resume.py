"""A run killed at any moment and started again ends with the bytes of a run that was never stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from comparing import outcome
from fork_runner import MOMENTS, Runner
from peftlab.config import loading
from peftlab.modelling import adapting, bookkeeping
from peftlab.scores import scoring

ADALORA = {
    "peft_type": "ADALORA",
    "init_r": 6,
    "target_r": 2,
    "tinit": 1,
    "tfinal": 2,
    "deltaT": 1,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "v_proj"],
}
METHODS: dict[str, dict[str, Any] | None] = {
    "lora": toy.LORA,
    "ia3": {"peft_type": "IA3", "target_modules": ["v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "adalora": ADALORA,
    "prompt-tuning": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
    "corda": {**toy.LORA, "init_lora_weights": "corda"},
    "pissa-niter": {**toy.LORA, "init_lora_weights": "pissa_niter_4"},
    "full": None,
}
KILLED = -9


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    running = Runner({"PEFTLAB_CACHE": str(tmp_path_factory.mktemp("cache"))})
    yield running
    running.close()


@pytest.fixture(scope="module")
def references(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """For each method its experiment and the outcome of an uninterrupted run."""
    found = {}
    for name, adapter in METHODS.items():
        root = tmp_path_factory.mktemp(name)
        folder = toy.write_experiment(
            root,
            name=f"{name}/toy",
            adapter=adapter,
            train={"eval_steps": 3, "max_steps": 8},
            calibration={"rows": 8},
        )
        assert runner.run(folder, root / "whole") == 0
        found[name] = (folder, outcome(root / "whole"))
    return found


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("method", METHODS)
def test_killed_run_resumes_to_the_same_bytes(
    runner: Runner, references: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, method: str, moment: str
) -> None:
    folder, whole = references[method]
    # validation 2 is the first of the training (1 is the starting model's), step 6 lies between two checkpoints
    count = {"step": 6, "checkpoint": 2, "validation": 2, "record": 1, "setup": 1}[moment]
    assert runner.run(folder, tmp_path / "results", kill=moment, count=count) == KILLED
    assert runner.run(folder, tmp_path / "results") == 0
    assert outcome(tmp_path / "results") == whole


def test_adalora_is_killed_inside_its_schedule(references: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """The budget really moves between the checkpoint and the end, else the test above proves nothing."""
    losses = [row["method_loss"] for row in references["adalora"][1]["curve"]]
    assert all(loss > 0 for loss in losses) and len(set(losses)) == len(losses)


@pytest.mark.full
@pytest.mark.parametrize("number", range(20))
def test_random_moments(
    runner: Runner, references: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, number: int
) -> None:
    draw = random.Random(number)
    method = draw.choice(list(METHODS))
    folder, whole = references[method]
    for _ in range(3):
        if runner.run(folder, tmp_path / "results", kill="random", count=draw.randint(5, 700)) != KILLED:
            break
    assert runner.run(folder, tmp_path / "results") == 0
    assert outcome(tmp_path / "results") == whole


def test_a_mask_that_moves_is_seen(tmp_path: Path) -> None:
    """Its bytes sum up to what they did; a checkpoint without it would resume to other weights."""
    spec = loading.load(toy.write_experiment(tmp_path))
    built = adapting.adapt(scoring.load_base(spec), spec)
    built.model.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 0.0]))
    reference = bookkeeping.take_reference(built)
    assert bookkeeping.changed_tensors(built, reference) == {}
    built.model.mask.copy_(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert list(bookkeeping.changed_tensors(built, reference)) == ["buffer:mask"]


def test_checkpoints_are_ordered_by_step(tmp_path: Path) -> None:
    """A name grows a digit at step 1 000 000; what was set aside is none."""
    from peftlab.loop import checkpoint

    for step in (999_999, 1_000_000, 50):
        (tmp_path / checkpoint.name(step)).mkdir()
        (tmp_path / checkpoint.name(step) / checkpoint.STATE_FILE).write_text("{}")
    (tmp_path / "step-2000000.bak").mkdir()
    (tmp_path / "step-2000000.bak" / checkpoint.STATE_FILE).write_text("{}")
    assert [path.name for path in checkpoint.existing(tmp_path)] == ["step-1000000", "step-999999", "step-000050"]
