"""Several processes of one launch make the run that one process makes: rows, losses, weights, predictions, endings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import toy
from comparing import curve, outcome, predictions, record_file, trained
from fork_runner import Runner
from peftlab.config import loading
from peftlab.config.groups import BatchSettings, TrainSettings
from peftlab.errors import UserError
from peftlab.job import runs
from peftlab.parallel import processes
from peftlab.records.store import RunStore
from peftlab.rows.batching import Stream, total_steps
from peftlab.rows.tokenise import TokenRow

TWO = {"batch.per_device_train_batch_size": 2, "batch.gradient_accumulation_steps": 1}
ONE = {"batch.per_device_train_batch_size": 2, "batch.gradient_accumulation_steps": 2}
STILL = {**toy.LORA, "lora_dropout": 0.0}
"""Dropout is drawn per process, so only a run without it can be compared with one process."""

CASES: dict[str, dict[str, Any]] = {
    "lora": {"adapter": STILL},
    "full": {"adapter": None},
    "adalora": {
        "adapter": {
            "peft_type": "ADALORA",
            "init_r": 6,
            "target_r": 2,
            "tinit": 1,
            "tfinal": 2,
            "deltaT": 1,
            "target_modules": ["q_proj", "v_proj"],
        }
    },
    "classifier": {"architecture": "bert", "adapter": {**STILL, "target_modules": ["query", "value"]}},
}


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    running = Runner()
    yield running
    running.close()


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[] if name == "lora" else [pytest.mark.slow]) for name in CASES]
)
def test_two_processes_equal_one_at_the_same_global_batch(runner: Runner, tmp_path: Path, case: str) -> None:
    """42 rows in steps of 4: in the last step of a pass the second process has no rows at all."""
    kind = "classify" if case == "classifier" else "generate"
    task = toy.write_task(tmp_path / "task", kind=kind, train=42)
    folder = toy.write_experiment(tmp_path, task=task, train={"max_steps": 12, "eval_steps": 6}, **CASES[case])
    assert runner.run(folder, tmp_path / "one", overrides=ONE) == 0
    assert runner.launch(2, folder, tmp_path / "two", overrides=TWO) == [0, 0]
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    for figure in ("tokens", "label_tokens", "learning_rate", "epoch"):
        assert [row[figure] for row in two] == [row[figure] for row in one]
    if case == "adalora":
        assert [row["method_loss"] for row in two] == pytest.approx([row["method_loss"] for row in one], rel=1e-4)
    first, second = trained(tmp_path / "one"), trained(tmp_path / "two")
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-4
    assert predictions(tmp_path / "one") == predictions(tmp_path / "two") != []
    record = json.loads(record_file(tmp_path / "two").read_text())
    assert record["spec"]["launch"]["num_processes"] == 2 and record["provenance"]["num_processes"] == 2


def test_every_row_is_taken_once_whatever_the_number_of_processes() -> None:
    rows = [
        TokenRow(item=f"row-{index}", ids=tuple(range(2 + index % 7)), labels_from=1, has_eos=True, truncated=False)
        for index in range(23)
    ]
    per_step: dict[int, list[set[str]]] = {}
    for size in (1, 2, 3):
        settings = BatchSettings(per_device_train_batch_size=2, gradient_accumulation_steps=6 // size)
        streams = [Stream(rows, settings, 5, rank=rank, world_size=size) for rank in range(size)]
        steps = total_steps(rows, settings, TrainSettings(num_train_epochs=2.0), world_size=size, seed=5)
        per_step[size] = []
        for _ in range(steps):
            parts = [next(stream) for stream in streams]
            taken = [row.item for part in parts for micro in part.micro_batches for row in micro]
            assert len(taken) == len(set(taken))
            per_step[size].append(set(taken))
            assert len({part.ends_epoch for part in parts}) == 1
        assert steps == 2 * 2  # 23 rows in steps of 12: a whole one and the tail, twice
        assert set.union(*per_step[size][:2]) == {row.item for row in rows} == set.union(*per_step[size][2:])
    assert per_step[1] == per_step[2] == per_step[3]


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_launch_and_the_next_one_goes_on(runner: Runner, tmp_path: Path, victim: int) -> None:
    folder = toy.write_experiment(tmp_path, train={"max_steps": 8, "eval_steps": 4})
    assert runner.launch(2, folder, tmp_path / "whole", overrides=TWO) == [0, 0]
    codes = runner.launch(2, folder, tmp_path / "results", overrides=TWO, kill="step", count=6, victim=victim)
    assert codes[victim] == -9 and codes[1 - victim] == 2
    (record,) = RunStore(tmp_path / "results").records()
    assert record.status == ("killed" if victim == 0 else "failed")
    assert victim == 0 or "another process" in str(record.error)
    assert runner.launch(2, folder, tmp_path / "results", overrides=TWO) == [0, 0]
    assert outcome(tmp_path / "results") == outcome(tmp_path / "whole")


def test_a_process_without_labels_in_the_first_step_is_no_error(runner: Runner, tmp_path: Path) -> None:
    """Its own gradients are zero; those of the step are not. Two rows lose their answers to `max_length`."""
    task = toy.write_task(tmp_path / "task")
    rows = [{"question": "9" * 90 if index < 2 else f"{index} + 1", "answer": str(index + 1)} for index in range(40)]
    (task.parent / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = toy.write_experiment(tmp_path, task=task, train={"max_steps": 2, "evaluate": "none"})
    assert runner.launch(2, folder, tmp_path / "results", overrides=TWO) == [0, 0]
    assert runner.run(folder, tmp_path / "one", overrides=ONE) == 0


def test_early_stopping_stops_all_processes(runner: Runner, tmp_path: Path) -> None:
    steered = {"max_steps": 12, "eval_steps": 2, "early_stopping_patience": 1, "load_best_model_at_end": True}
    folder = toy.write_experiment(tmp_path, train=steered)
    assert runner.launch(2, folder, tmp_path / "results", overrides=TWO) == [0, 0]
    assert len(curve(tmp_path / "results")) < 12


def test_a_launcher_that_delivers_other_numbers_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy.write_experiment(tmp_path)
    declared = loading.load(folder, overrides={"launch.num_processes": 2})
    with pytest.raises(UserError, match=r"launch\.num_processes = 2, but the launcher started 1"):
        runs.run(declared, RunStore(tmp_path / "results"))
    assert not (tmp_path / "results").exists()
    monkeypatch.setenv("WORLD_SIZE", "3")  # left over in some shell: only a launcher sets a rank too
    assert loading.load(folder).launch.num_processes == 1
    monkeypatch.setenv("RANK", "0")
    assert loading.load(folder).launch.num_processes == 3
    with pytest.raises(UserError, match=r"launch\.num_processes = 2, but the launcher started 3"):
        runs.run(declared, RunStore(tmp_path / "results"))


def test_the_global_batch_is_part_of_the_identity(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    one, two = loading.load(folder), loading.load(folder, overrides={"launch.num_processes": 2})
    assert one.train_key != two.train_key and two.global_batch_size == 2 * one.global_batch_size


def test_a_world_of_one_sends_nothing() -> None:
    assert processes.world() == processes.World(rank=0, size=1)
    assert processes.summed(1.5, 2) == [1.5, 2]
    assert processes.merged({3: "a"}) == {3: "a"}
    processes.agree(1.0, "nothing")
    processes.tell(do="end")
