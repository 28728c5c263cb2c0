"""Mistakes in an experiment's folder and on the command line: exit code 2, a message with the way out, nothing left.

Most are found before any model is loaded. Faults of the machine are in test_faults.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import toy
from refusals import Place, left_behind

Change = Callable[[Path], object]


def test_the_same_folder_without_a_mistake_runs(place: Place) -> None:
    """What every refusal in test_bad_*.py starts from works; otherwise it would prove nothing."""
    assert "finished" in place.runs("run", place.experiment())
    assert left_behind(place.root)


# ---------------------------------------------------------------------------------------------- folders and their files


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("experiments/lora/toyy", ("not found: experiments/lora/toyy", "did you mean 'experiments/lora/toy'?")),
        ("experiments/lorra/tooy", ("not found", "did you mean 'experiments/lora/toy'?")),
        ("experiments/lora/toy/training_params.json", ("not found", "give the path of a folder")),
        ("experiments/lora", ("experiments/lora holds no experiment", "such as experiments/lora/toy")),
        ("nowhere/at/all", ("not found: nowhere/at/all", "experiments/<method>/<name>/")),
    ],
)
def test_a_folder_that_is_no_experiment(place: Place, path: str, says: tuple[str, ...]) -> None:
    place.experiment()
    place.refuses("run", path, says=says)
    if path != "experiments/lora":  # which is a folder of experiments, and may be checked
        place.refuses("check", path, "--no-model", says=says)


def parameters(content: str | bytes) -> Change:
    def write(folder: Path) -> None:
        path = folder / "training_params.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


FILES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "JSON that ends too soon": (
        parameters('{"task": "gsm8k",\n "seed": }'),
        ("training_params.json is not valid JSON", "line 2 column 10"),
    ),
    "an empty file": (parameters(""), ("training_params.json is not valid JSON", "line 1")),
    "a list": (parameters("[1]"), ("training_params.json holds a list", "write it as {...}")),
    "nested 100 000 deep": (parameters("[" * 100_000), ("training_params.json is not valid JSON", "recursion")),
    "a key twice": (parameters('{"seed": 1, "seed": 2}'), ("key 'seed' is given twice", "keep one")),
    "NaN": (parameters('{"optim": {"learning_rate": NaN}}'), ("'learning_rate' = NaN", "write a number")),
    "infinity": (parameters('{"optim": {"learning_rate": 1e999}}'), ("'learning_rate' = Infinity",)),
    "NaN in a list": (parameters('{"optim": {"optimizer_kwargs": {"betas": [NaN]}}}'), ("'betas' = [NaN]",)),
    "no UTF-8": (parameters(b'{"task": "\xff"}'), ("training_params.json is not UTF-8", "save it as UTF-8")),
    "UTF-16": (parameters('{"task": "gsm8k"}'.encode("utf-16")), ("training_params.json is not UTF-8",)),
    "10 MB": (parameters(" " * 10_000_000), ("training_params.json is larger than", "really a config file?")),
    "a task that is a number": (parameters('{"task": 5}'), ("'task' = 5 is no task", "peftlab list tasks")),
    "a group that is a number": (parameters('{"optim": 5}'), ("'optim' is a group", "not 5")),
    "both parameter files": (
        lambda folder: (folder / "training_parameters.json").write_text("{}"),
        ("holds both training_params.json and training_parameters.json", "keep one"),
    ),
    "an unknown file": (
        lambda folder: (folder / "adaptor_config.json").write_text("{}"),
        ("unknown file", "adaptor_config.json", "did you mean 'adapter_config.json'?"),
    ),
    "an adapter config that is a list": (
        lambda folder: (folder / "adapter_config.json").write_text("[]"),
        ("adapter_config.json holds a list",),
    ),
    "an adapter config without its type": (
        lambda folder: (folder / "adapter_config.json").write_text('{"r": 8}'),
        ("adapter_config.json: 'peft_type' is required", '"peft_type": "LORA"'),
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_read_as_meant(place: Place, case: str) -> None:
    change, says = FILES[case]
    folder = place.experiment()
    change(folder)
    place.refuses("run", folder, says=says)


def test_a_byte_order_mark_is_no_mistake(place: Place) -> None:
    folder = place.experiment()
    path = folder / "training_params.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    place.runs("check", "--no-model", folder)


# ------------------------------------------------------------------------------------------------------------- settings

SETTINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "misspelt": ({"optim": {"learning_rat": 1.0}}, ("unknown key 'learning_rat'", "did you mean 'learning_rate'?")),
    "misspelt group": ({"optimm": {}}, ("unknown key 'optimm'", "did you mean 'optim'?")),
    "outside its group": ({"max_steps": 5}, ("unknown key 'max_steps'", "did you mean 'train.max_steps'?")),
    "text for a number": ({"train": {"max_steps": "many"}}, ("'max_steps' = \"many\"", "valid integer")),
    "half a step": ({"train": {"max_steps": 5.5}}, ("'max_steps' = 5.5", "valid integer")),
    "true for a number": ({"train": {"max_steps": True}}, ("'max_steps' = true", "valid integer")),
    "text for a seed": ({"seed": "1"}, ("'seed' = \"1\"", "valid integer")),
    "seed below zero": ({"seed": -1}, ("'seed' = -1", "greater than or equal to 0")),
    "batch of none": ({"batch": {"per_device_train_batch_size": 0}}, ("'per_device_train_batch_size' = 0",)),
    "batch below zero": ({"batch": {"per_device_eval_batch_size": -1}}, ("'per_device_eval_batch_size' = -1",)),
    "rate of zero": ({"optim": {"learning_rate": 0}}, ("'learning_rate' = 0", "greater than 0")),
    "warm-up of 1.0": ({"optim": {"warmup_steps": 1.0}}, ("'warmup_steps' = 1.0", "whole steps as an integer")),
    "eval_steps beyond the end": ({"train": {"eval_steps": 5}}, ("eval_steps (5) is larger than max_steps (2)",)),
    "best without validation": (
        {"train": {"load_best_model_at_end": True}},
        ("load_best_model_at_end", "need validations on the way: set eval_strategy"),
    ),
    "best by an unknown metric": (
        {"train": {"load_best_model_at_end": True, "eval_steps": 1, "metric_for_best_model": "exact_mach"}},
        ("train.metric_for_best_model", "'exact_mach'", "did you mean 'exact_match'?"),
    ),
    "unknown precision": ({"model": {"dtype": "fp16"}}, ("'dtype' = \"fp16\"", "'float16'")),
    "unknown schedule": ({"optim": {"lr_scheduler_type": "cosin"}}, ("'lr_scheduler_type' = \"cosin\"", "'cosine'")),
    "unknown attention": (
        {"model": {"attn_implementation": "sdpaa"}},
        ('attn_implementation="sdpaa"', "set model.attn_implementation to sdpa"),
    ),
    "unknown optimizer": ({"optim": {"optimizer": "AdamWW"}}, ("optim.optimizer 'AdamWW'", "did you mean 'AdamW'?")),
    "optimizer that needs a closure": (
        {"optim": {"optimizer": "LBFGS"}},
        ("optim.optimizer: LBFGS", "several times a step", "AdamW"),
    ),
    "unknown argument of the optimizer": (
        {"optim": {"optimizer_kwargs": {"betass": [0.9, 0.99]}}},
        ("optim.optimizer_kwargs", "'betass'", "it takes: betas"),
    ),
    "wrong argument of the optimizer": (
        {"optim": {"optimizer_kwargs": {"betas": [2, 3]}}},
        ("optim.optimizer_kwargs", "Invalid beta parameter"),
    ),
    "rate in the wrong place": (
        {"optim": {"optimizer_kwargs": {"lr": 5}}},
        ("optim.optimizer_kwargs: 'lr'", "set optim.learning_rate"),
    ),
    "decay that the optimizer lacks": (
        {"optim": {"optimizer": "Rprop", "weight_decay": 0.1}},
        ("optim.weight_decay: Rprop has none", "set optim.weight_decay=0"),
    ),
    "unknown engine": ({"generation": {"engine": "hff"}}, ("generation.engine", "'hff'", "did you mean 'hf'?")),
    "more worked examples than rows": (
        {"generation": {"few_shot": 1000}},
        ("generation.few_shot = 1000", "only 40 training rows"),
    ),
    "chat without a template": (
        {"generation": {"chat_template": True}},
        ("generation.chat_template", "has no chat template", "chat_template=false"),
    ),
    "unknown text": ({"data": {"forgetting": "wikitext"}}, ("data.forgetting", "'wikitext'", "'wikitext2'?")),
    "no rows": ({"data": {"train_rows": 0}}, ("data.train_rows = 0", "must be above 0")),
    "one and a half rows": ({"data": {"test_rows": 1.5}}, ("data.test_rows = 1.5", "a count (an integer)")),
    "more rows than there are": ({"data": {"train_rows": 999}}, ("train asks for 999 rows, there are 40",)),
    "unknown task": ({"task": "gsm8kk"}, ("unknown task 'gsm8kk'", "did you mean 'gsm8k'?")),
    "task file that is not there": ({"task": "nosuch.yaml"}, ("task file not found: nosuch.yaml",)),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_that_cannot_be(place: Place, case: str) -> None:
    groups, says = SETTINGS[case]
    folder = place.experiment(**groups)
    place.refuses("run", folder, says=says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["learning_rate"], ("'learning_rate' is no setting", "key=value")),
        (["=1"], ("'=1' is no setting", "key=value")),
        (["learning_rate=1"], ("command line: unknown key 'learning_rate'", "did you mean 'optim.learning_rate'?")),
        (["optim.learning_rat=1"], ("command line [optim]", "'learning_rat'", "did you mean 'learning_rate'?")),
        (["optm.learning_rate=1"], ("'optm.learning_rate'", "nearest: optim")),
        (["optim=1"], ("'optim' names a group", "optim.<setting>=value")),
        (["optim.=1"], ("unknown key ''", "known keys: decay_exempt, learning_rate")),
        (["model.id.name=1"], ("'model.id.name'", "set model.id itself")),
        (["seed=1", "seed=2"], ("'seed' is given twice",)),
        (["seed=one"], ("'seed' = \"one\"", "valid integer")),
        (["optim.learning_rate=1e999"], ("'learning_rate' = Infinity", "finite")),
        (["task=gsm8kk"], ("unknown task 'gsm8kk'", "did you mean 'gsm8k'?")),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_word_of_the_command_line_that_is_no_setting(place: Place, words: list[str], says: tuple[str, ...]) -> None:
    place.refuses("run", place.experiment(), *words, says=says)


# ------------------------------------------------------------------------------------------------------------- adapters

ADAPTERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "misspelt key": ({"lora_alhpa": 8}, ("no setting 'lora_alhpa' (= 8)", "did you mean 'lora_alpha'?")),
    "key of nobody": ({"zzz": "x"}, ("no setting 'zzz'", "settings: ", "lora_alpha")),
    "unknown type": ({"peft_type": "LORRA"}, ("unknown peft_type 'LORRA'", "did you mean 'LORA'?")),
    "another kind of task": ({"task_type": "SEQ_CLS"}, ("task_type is SEQ_CLS", "needs CAUSAL_LM", "remove")),
    "rank of zero": ({"r": 0}, ("`r` should be a positive integer", "passed is 0")),
    "rank that is text": ({"r": "eight"}, ("mend 'r' (= \"eight\"", "by default 8")),
    "rank of four and a half": ({"r": 4.5}, ("mend 'r' (= 4.5",)),
    "dropout of two": ({"lora_dropout": 2.0}, ("dropout probability has to be between 0 and 1", "2.0")),
    "targets that match nothing": (
        {"target_modules": ["q_projj"]},
        ("'q_projj'", "linear layers of this model: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj"),
    ),
}


@pytest.mark.parametrize("case", ADAPTERS)
@pytest.mark.parametrize("verb", ["run", "check"])
def test_an_adapter_that_cannot_be(place: Place, verb: str, case: str) -> None:
    changes, says = ADAPTERS[case]
    folder = place.experiment(adapter={**toy.LORA, **changes})
    place.refuses(verb, folder, says=(str(folder / "adapter_config.json"), *says))


def test_unknown_keys_with_empty_values_are_left_out_recorded_and_said(place: Place) -> None:
    folder = place.experiment(adapter={**toy.LORA, "new_thing": None, "other_thing": {}})
    text = place.runs("run", folder)
    assert "note: " in text and "new_thing, other_thing" in text
    record = json.loads(place.record().read_text())
    assert record["provenance"]["model"]["dropped_adapter_keys"] == ["new_thing", "other_thing"]
    assert record["identity"]["adapter"]["new_thing"] is None


# ------------------------------------------------------------------------------------------------------- real processes


@pytest.mark.parametrize(
    ("change", "words", "says"),
    [
        (None, ["run", "experiments/lora/toyy"], ("did you mean 'experiments/lora/toy'?",)),
        (None, ["run", "experiments/lora/toy", "optim.learning_rat=1"], ("did you mean 'learning_rate'?",)),
        (parameters('{"seed": NaN}'), ["check", "--no-model"], ("'seed' = NaN", "1 problem")),
    ],
)
def test_as_a_process(place: Place, change: Change | None, words: list[str], says: tuple[str, ...]) -> None:
    folder = place.experiment()
    if change is not None:
        change(folder)
    command = [sys.executable, "-m", "peftlab", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    for expected in says:
        assert expected in done.stderr
    assert left_behind(place.root) == {}
