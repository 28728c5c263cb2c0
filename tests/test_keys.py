"""What makes two runs one run, and what must keep them apart, beyond the single settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import toy
from peftlab.config import loading, references
from peftlab.graders import numeric


@pytest.mark.parametrize("steering", [{"train.load_best_model_at_end": True}, {"train.early_stopping_patience": 2}, {}])
def test_a_grader_that_steers_a_run_is_in_its_key_with_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steering: dict[str, object]
) -> None:
    """Another version grades otherwise, and so may keep other weights; where it steers nothing it is in no key."""
    folder = toy.write_experiment(tmp_path, train={"eval_steps": 2})
    before = loading.load(folder, overrides=steering)
    key, evaluation = before.train_key, before.evaluation_key("test", {})
    monkeypatch.setattr(numeric, "PLUGIN", dataclasses.replace(numeric.PLUGIN, version=numeric.PLUGIN.version + 1))
    after = loading.load(folder, overrides=steering)
    assert (after.train_key != key) is bool(steering)
    assert after.evaluation_key("test", {}) == evaluation


@pytest.mark.parametrize("nothing", [0.0, -0.0])
def test_no_warm_up_is_one_run_however_it_is_written(tmp_path: Path, nothing: float) -> None:
    folder = toy.write_experiment(tmp_path)
    keys = {loading.load(folder, overrides={"optim.warmup_steps": value}).train_key for value in (0, nothing)}
    assert len(keys) == 1


def test_adapters_that_are_mixed_are_in_the_key_by_their_content(tmp_path: Path) -> None:
    """Another expert under the same path is another run; the same one under another path is not."""

    def key(path: str) -> str:
        adapter = {"peft_type": "XLORA", "hidden_size": 32, "adapters": {"0": path}}
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        toy.save_model(root / "model-llama")
        return loading.load(toy.write_experiment(root, adapter=adapter)).train_key

    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(b"first")
    before = key(str(one))
    assert key(str(two)) == before
    (one / "adapter_model.safetensors").write_bytes(b"other")
    assert key(str(one)) != before
    text = "either/or " * 400
    assert references.with_content({"prompt_tuning_init_text": text}) == {"prompt_tuning_init_text": text}


@pytest.mark.parametrize(
    ("revision", "pinned"),
    [("0123456789abcdef" * 2 + "01234567", True), ("main", False), ("v1.0", False), ("0123456", False), (None, False)],
)
def test_only_a_whole_commit_cannot_move(revision: str | None, pinned: bool) -> None:
    assert references.is_commit(revision) is pinned
