"""What makes two runs one run, and what must keep them apart, beyond the single settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    "changed",
    [
        {"generation.few_shot": 2},
        {"batch.per_device_eval_batch_size": 3},
        {"batch.eval_order": "file"},
        {"generation.max_new_tokens": 3},
        {"model.dtype": "bfloat16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["generate", "choose"])
def test_what_can_change_an_answer_is_in_the_key_of_an_evaluation(
    tmp_path: Path, kind: str, changed: dict[str, object]
) -> None:
    more = {"choices": "options", "columns": {"question": "question", "answer": "answer", "options": "options"}}
    choose = {**more, "target": " {choice}", "grader": {"name": "choice"}, "metrics": {"acc": "higher"}}
    changes: dict[str, Any] = {**choose, "max_new_tokens": None} if kind == "choose" else {}
    task = toy.write_task(tmp_path / "task", kind=kind, **changes)
    folder = toy.write_experiment(tmp_path, task=task)

    def key(**overrides: object) -> str:
        spec = loading.load(folder, overrides=overrides)
        return spec.evaluation_key("test", spec.base_identity())

    same = kind == "choose" and "generation.max_new_tokens" in changed  # nothing is generated
    assert (key(**changed) == key()) is same


def test_a_quantised_model_is_another_model_in_the_key_of_an_evaluation(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    plain, quantised = (
        loading.load(folder, overrides=changes).base_identity() for changes in ({}, {"quant.method": "bnb-int8"})
    )
    assert "quant" not in plain and quantised["quant"]["method"] == "bnb-int8"


def test_a_task_may_say_how_many_examples_it_shows(tmp_path: Path) -> None:
    """Its number is in the key as if the user had given it; what the user says overrules it."""
    plain = toy.write_experiment(tmp_path / "a")
    shows = toy.write_experiment(tmp_path / "b", task=toy.write_task(tmp_path / "b" / "task", few_shot=3))
    assert loading.load(shows).generation.few_shot == 3
    assert loading.load(shows, overrides={"generation.few_shot": 0}).generation.few_shot == 0
    key = loading.load(shows).evaluation_key("test", {})
    assert key == loading.load(shows, overrides={"generation.few_shot": 3}).evaluation_key("test", {})
    assert key != loading.load(shows, overrides={"generation.few_shot": 0}).evaluation_key("test", {})
    assert loading.bare("m", task="mathqa").generation.few_shot == 5
    trained = loading.load(shows)
    elsewhere = loading.with_evaluation(trained, task=str(toy.write_task(tmp_path / "c")), overrides={})
    assert elsewhere.generation.few_shot == 0
    assert loading.with_evaluation(loading.load(plain), task="mathqa", overrides={}).generation.few_shot == 5


def test_training_in_the_chat_template_is_another_run(tmp_path: Path) -> None:
    """It follows what is asked, is in the train key only then, and stays what it was in later evaluations."""
    folder = toy.write_experiment(tmp_path)
    plain = loading.load(folder)
    chat = loading.load(folder, overrides={"generation.chat_template": True})
    assert plain.data.chat_template is None and "chat_template" not in str(plain.identity())
    assert chat.data.chat_template is True and chat.identity()["data"]["chat_template"] is True
    assert chat.train_key != plain.train_key
    apart = loading.load(folder, overrides={"generation.chat_template": True, "data.chat_template": False})
    assert apart.train_key == plain.train_key and apart.generation.chat_template
    asked = {"generation.chat_template": True}
    later = loading.with_evaluation(plain, task=None, overrides=asked)
    assert later.train_key == plain.train_key
    assert later.evaluation_key("test", {}) == chat.evaluation_key("test", {})
    assert loading.with_evaluation(chat, task=None, overrides={"generation.chat_template": False}).train_key == (
        chat.train_key
    )
    assert loading.with_evaluation(chat, task="gsm8k", overrides={}).data.chat_template is None


def test_what_stands_between_two_texts_is_in_both_keys(tmp_path: Path) -> None:
    columns = {"question": "question", "other": "answer", "label": "label"}
    pair: dict[str, Any] = {"pair": ["question", "other"], "columns": columns}
    folder = toy.write_experiment(tmp_path, task=toy.write_task(tmp_path / "task", kind="classify", **pair))
    plain, glued = loading.load(folder), loading.load(folder, overrides={"data.pair_separator": ""})
    assert plain.train_key != glued.train_key
    assert plain.evaluation_key("test", {}) != glued.evaluation_key("test", {})
    assert "pair_separator" not in str(plain.identity())
