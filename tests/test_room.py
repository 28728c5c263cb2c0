"""What an out-of-memory error advises: settings that can be lowered, with their values, the cheapest first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from peftlab import cli
from peftlab.config import loading
from peftlab.job import runs
from peftlab.loop import training
from peftlab.records import room
from peftlab.records.store import RunStore
from peftlab.scores import scoring

ORDER = [
    "batch.per_device_train_batch_size",
    "batch.per_device_eval_batch_size",
    "model.gradient_checkpointing",
    "model.dtype",
    "data.max_length",
]


def full(*args: Any, **kwargs: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def named(advice: str) -> list[str]:
    """The setting that each line begins with."""
    return [re.match(r"[a-z_.]+", line.strip())[0] for line in advice.splitlines()[1:]]  # type: ignore[index]


def test_every_setting_is_named_with_its_value_the_cheapest_first(tmp_path: Path) -> None:
    folder = toy.write_experiment(
        tmp_path,
        batch={"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3, "per_device_eval_batch_size": 20},
        data={"max_length": 128},
    )
    advice = room.advice(loading.load(folder), trains=True)
    assert named(advice) == ORDER
    assert "batch.per_device_train_batch_size=4 batch.gradient_accumulation_steps=6 (now 8 and 3)" in advice
    assert "batch.per_device_eval_batch_size=10 (now 20)" in advice
    assert "data.max_length lower (now 128)" in advice


@pytest.mark.parametrize(("rows", "passes", "less", "more"), [(8, 1, 4, 2), (6, 2, 3, 4), (5, 2, 1, 10), (2, 1, 1, 2)])
def test_what_is_advised_keeps_the_rows_of_a_step(tmp_path: Path, rows: int, passes: int, less: int, more: int) -> None:
    folder = toy.write_experiment(
        tmp_path, batch={"per_device_train_batch_size": rows, "gradient_accumulation_steps": passes}
    )
    spec = loading.load(folder)
    line = room.advice(spec, trains=True).splitlines()[1]
    words = re.findall(r"[a-z_.]+=\d+", line)
    assert words == [f"batch.per_device_train_batch_size={less}", f"batch.gradient_accumulation_steps={more}"]
    lowered = loading.load(folder, overrides=loading.parse_overrides(words))
    assert lowered.global_batch_size == spec.global_batch_size


def test_what_is_low_already_is_left_out(tmp_path: Path) -> None:
    folder = toy.write_experiment(
        tmp_path,
        batch={"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1},
        model={"gradient_checkpointing": True, "dtype": "bfloat16"},
    )
    spec = loading.load(folder)
    assert named(room.advice(spec, trains=True)) == ["data.max_length"]
    assert room.advice(spec, trains=False) == room.NOTHING


def test_a_run_carries_it_and_keeps_the_kind_of_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy.write_experiment(tmp_path)
    monkeypatch.setattr(training, "forward", full)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        runs.run(loading.load(folder), RunStore(tmp_path / "results"))
    assert named(str(room.advice_on(caught.value))) == ORDER
    [record] = RunStore(tmp_path / "results").records()
    assert record.status == "out_of_memory" and record.error == f"OutOfMemoryError: {caught.value}"


@pytest.mark.parametrize("what", ["run", "model"])
def test_an_evaluation_names_only_what_an_evaluation_can_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """The value is the one asked for, not the one that the run was trained with."""
    monkeypatch.chdir(tmp_path)
    spec = loading.load(toy.write_experiment(tmp_path), overrides={"train.evaluate": "none", "train.max_steps": 1})
    record = runs.run(spec, RunStore("results"))
    reference, task = record.key[:12], list[str]()
    if what == "model":
        reference, task = str(tmp_path / "model-llama"), ["--task", str(tmp_path / "task-generate" / "toy.yaml")]
    monkeypatch.setattr(scoring, "score", full)
    assert cli.main(["evaluate", reference, *task, "batch.per_device_eval_batch_size=12"]) == 2
    text = capsys.readouterr().err
    assert "error: out of memory: CUDA out of memory. Tried to allocate 9 GiB" in text
    assert "batch.per_device_eval_batch_size=6 (now 12)" in text and "train_batch_size" not in text


def test_another_error_carries_none(tmp_path: Path) -> None:
    spec = loading.load(toy.write_experiment(tmp_path))
    with pytest.raises(RuntimeError) as caught, room.advised(spec, trains=True):
        raise RuntimeError("shapes do not match")
    assert room.advice_on(caught.value) is None


def test_the_page_names_them_in_the_same_order() -> None:
    page = (Path(__file__).parent.parent / "docs" / "troubleshooting.md").read_text()
    section = page.split("## Out of memory")[1].split("\n## ")[0]
    assert re.findall(r"^\d\. `([a-z_.]+)", section, flags=re.MULTILINE) == ORDER
