"""Bad input through the command line: exit code 2, no traceback, a message with the way out, nothing left behind.

Most mistakes are found before any model is loaded. Faults of the machine are in test_faults.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import toy
from refusals import Place, left_behind

Change = Callable[[Path], object]


@pytest.fixture(scope="session")
def shared_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.save_model(tmp_path_factory.mktemp("shared") / "model")


@pytest.fixture
def place(
    tmp_path: Path, shared_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Place:
    monkeypatch.chdir(tmp_path)
    for variable in ("PEFTLAB_PLUGINS", "PEFTLAB_MIRROR"):
        monkeypatch.setenv(variable, "")
    return Place(tmp_path, shared_model, capsys)


def test_the_same_folder_without_a_mistake_runs(place: Place) -> None:
    """What every test below starts from works; otherwise a refusal would prove nothing."""
    assert "finished" in place.runs("run", place.experiment())
    assert left_behind(place.root)


# ------------------------------------------------------------------------------------------- folders and their files


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
    "a task that is a number": (parameters('{"task": 5}'), ("no task is named", "task=NAME")),
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


# ---------------------------------------------------------------------------------------------------------- settings

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
        ("load_best_model_at_end", "need eval_steps"),
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
    "optimizer that needs a closure": ({"optim": {"optimizer": "LBFGS"}}, ("optim.optimizer 'LBFGS'", "AdamW")),
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
        (["optim.=1"], ("unknown key ''", "known keys: learning_rate")),
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


# ----------------------------------------------------------------------------------------------------------- adapters

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


# -------------------------------------------------------------------------------------------------------------- tasks

TASKS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "prompt without a field": ({"prompt": "Question:"}, ("toy.yaml", "'prompt' = 'Question:' lacks a column")),
    "target without a field": ({"target": " yes"}, ("toy.yaml", "'target' = ' yes' lacks a column")),
    "field that is no column": ({"prompt": "{questionn} ="}, ("{questionn}", "'columns': ['answer', 'question']")),
    "field with an attribute": (
        {"prompt": "{question.__class__} ="},
        ("only plain fields like {question}", "{question.__class__}"),
    ),
    "field with an index": ({"prompt": "{question[0]} ="}, ("only plain fields like {question}", "{question[0]}")),
    "field with a width": ({"prompt": "{question:>9999999999}"}, ("only plain fields like {question}",)),
    "field that is not closed": ({"prompt": "{question ="}, ("toy.yaml", "expected '}'")),
    "misspelt key": ({"promt": "{question} ="}, ("unknown key 'promt'", "did you mean 'prompt'?")),
    "column not in the data": (
        {"columns": {"question": "questionn", "answer": "answer"}},
        ("no column 'questionn'", "['answer', 'label', 'question']", "mend 'columns'"),
    ),
    "unknown kind": ({"kind": "generat"}, ("'kind' = \"generat\"", "'generate'")),
    "unknown grader": ({"grader": {"name": "numeri"}}, ("task 'toy'", "grader 'numeri'", "did you mean 'numeric'?")),
    "unknown mode": (
        {"grader": {"name": "numeric", "modes": ["strict", "lose"]}},
        ("task 'toy'", "mode of numeric 'lose'", "flexible, strict"),
    ),
    "metric that nobody measures": (
        {"metrics": {"exact_mach": "higher"}},
        ("task 'toy'", "metric 'exact_mach'", "did you mean 'exact_match'?"),
    ),
    "metric without a direction": ({"metrics": {"exact_match": "up"}}, ("'metrics.exact_match' = \"up\"", "'higher'")),
    "data that is not there": ({"test": {"dataset": "./nosuch", "split": "test"}}, ("test: no data at nosuch",)),
    "folder without ./": (
        {"test": {"dataset": "task", "split": "test"}},
        ("dataset 'task' may mean a hub id", "write ./task"),
    ),
    "split that is not there": (
        {"test": {"dataset": "./task", "split": "tset"}},
        ("no file for split 'tset'", "test.jsonl, train.jsonl, valid.jsonl"),
    ),
    "slice beyond the data": (
        {"train": {"dataset": "./task", "split": "train[:100000]"}},
        ("train: split 'train[:100000]' reaches beyond the data", "40 rows"),
    ),
    "slice of nothing": (
        {"train": {"dataset": "./task", "split": "train[5:5]"}},
        ("split 'train[5:5]' is an empty data set",),
    ),
    "slice that is none": (
        {"train": {"dataset": "./task", "split": "train[a:b]"}},
        ("cannot read the split 'train[a:b]'", "train[:1000]"),
    ),
    "data set of the hub, offline": (
        {"train": {"dataset": "some/where", "split": "train"}},
        ("train: cannot read some/where", "set PEFTLAB_MIRROR"),
    ),
    "label that is not there": (
        {
            "kind": "classify",
            "labels": ["even"],
            "pair": ["question"],
            "reference": "label",
            "columns": {"question": "question", "label": "label"},
            "prompt": None,
            "target": None,
            "max_new_tokens": None,
            "grader": {"name": "label"},
            "metrics": {"acc": "higher"},
        },
        ("'label' = 1 is no index into the 1 labels",),
    ),
}


@pytest.mark.parametrize("case", TASKS)
def test_a_task_that_cannot_be(place: Place, case: str) -> None:
    changes, says = TASKS[case]
    adapter = None if case == "label that is not there" else toy.LORA
    place.refuses("run", place.experiment(task=place.task(**changes), adapter=adapter), says=says)


YAMLS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "a Python object": (b'version: !!python/object/apply:os.mkdir ["made"]\n', ("python/object/apply", "line 1")),
    "a Python object as the whole": (b'!!python/object/new:os.mkdir ["made"]\n', ("python/object/new", "line 1")),
    "a key twice": (b"version: 1\nversion: 1\n", ("key 'version' is given twice", "line 2")),
    "a key that is a list": (b"[1]: 2\n", ("a key is a list", "line 1")),
    "a list": (b"- 1\n", ("holds no mapping",)),
    "nothing": (b"", ("holds no mapping",)),
    "a tab": (b"version: 1\n\tkind: generate\n", ("line 2",)),
    "a number of 5000 digits": (b"version: " + b"9" * 5000 + b"\n", ("Exceeds the limit",)),
    "nested too deep": (b"[" * 500, ("not valid YAML",)),
    "Latin-1": ("description: caf\xe9\n".encode("latin-1"), ("is not UTF-8", "save it as UTF-8")),
    "2 MB": (b"#" * 2_000_000, ("is larger than",)),
    "a name of its own": (b"name: x\n", ("'name' and 'convert' are filled in", "remove")),
}


@pytest.mark.parametrize("case", YAMLS)
def test_a_task_file_that_cannot_be_read_as_meant(place: Place, case: str) -> None:
    content, says = YAMLS[case]
    path = place.task()
    path.write_bytes(content)
    place.refuses("run", place.experiment(task=path), says=("toy.yaml", *says))
    place.refuses("check", path, says=("toy.yaml", *says))
    assert not Path("made").exists()


ROWS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "no training row": ("train", "", ("train: split 'train' is an empty data set",)),
    "no test row": ("test", "\n", ("test: split 'test' is an empty data set",)),
    "a torn row": ("train", '{"question": "1', ("train.jsonl, line 1", "one JSON object")),
    "a row that is a list": ("valid", "[1]\n", ("valid.jsonl, line 1", "a list, not an object")),
    "a row without its text": ("train", '{"question": null, "answer": "1"}\n', ("column 'question'", "not text")),
    "the test in the training": (
        "test",
        "".join(json.dumps(row) + "\n" for row in (*toy.rows(1), *toy.rows(9, 700))),
        ("1 of 10 test items (10.00%) stand in the training rows", "1.00% is allowed", "data.allow_overlap=0.1"),
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_cannot_be_used(place: Place, case: str) -> None:
    split, content, says = ROWS[case]
    folder = place.experiment()
    Path(f"task/{split}.jsonl").write_text(content)
    place.refuses("run", folder, says=("task 'toy'", *says))


def test_test_items_in_the_training_rows_can_be_accepted(place: Place) -> None:
    folder = place.experiment()
    Path("task/test.jsonl").write_text(ROWS["the test in the training"][1])
    place.runs("run", folder, "data.allow_overlap=0.1", "train.evaluate=none")


# ------------------------------------------------------------------------------------------------------------- mirror


@pytest.fixture
def mirror(place: Place, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """A mirror that holds the training and a part of the test of the data set some/sums."""
    place.task()
    splits = {"train": "train.jsonl", "valid": "valid.jsonl", "test-part": "test.jsonl"}
    index = {"some/sums": {"folder": ".", "splits": splits, "partial": ["test-part"]}}
    Path("task/mirror.json").write_text(json.dumps(index))
    monkeypatch.setenv("PEFTLAB_MIRROR", str(place.root / "task"))
    return {part: {"dataset": "some/sums", "split": part} for part in ("train", "valid", "test")}


def test_a_split_absent_from_the_mirror(place: Place, mirror: Mapping[str, Any]) -> None:
    task = place.task(**mirror)
    place.refuses(
        "run",
        place.experiment(task=task),
        says=("test: the mirror has no split 'test' of some/sums", "test-part (a part)", "train, valid", "only when"),
    )


def test_a_part_of_a_split_is_used_when_named_and_marks_the_record(place: Place, mirror: Mapping[str, Any]) -> None:
    task = place.task(**{**mirror, "test": {"dataset": "some/sums", "split": "test-part"}})
    assert "part of the data" in place.runs("run", place.experiment(task=task))
    record = json.loads(place.record().read_text())
    assert record["training"]["partial"] is True
    assert all(evaluation["partial"] for evaluation in record["evaluations"])


def test_a_mirror_that_is_none(place: Place, mirror: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place.experiment(task=place.task(**mirror))
    monkeypatch.setenv("PEFTLAB_MIRROR", str(place.root / "nosuch"))
    place.refuses("run", folder, says=("PEFTLAB_MIRROR names", "nosuch", "holds no mirror.json", "unset the variable"))
    monkeypatch.setenv("PEFTLAB_MIRROR", str(place.root / "task"))
    Path("task/mirror.json").write_text('{"some/sums": {"folder": "."}}')
    place.refuses("run", folder, says=("mirror.json", "'some/sums'", "lacks 'folder' or 'splits'"))
    Path("task/mirror.json").write_text("{")
    place.refuses("run", folder, says=("mirror.json is not valid JSON",))


# ------------------------------------------------------------------------------------------------------------- models


def edited(name: str, **changes: Any) -> Change:
    def edit(model: Path) -> None:
        plain = {**json.loads((model / name).read_text()), **changes}
        (model / name).write_text(json.dumps({key: value for key, value in plain.items() if value is not None}))

    return edit


def without(pattern: str) -> Change:
    def remove(model: Path) -> None:
        for path in model.glob(pattern):
            path.unlink()

    return remove


def torn(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def an_encoder(model: Path) -> None:
    shutil.rmtree(model)
    toy.save_model(model, "bert")


MODELS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "no weights": (without("model.safetensors"), ("model.safetensors",)),
    "torn weights": (torn, ("model of model.id", "not fully covered")),
    "no config": (without("config.json"), ("model_type",)),
    "a torn config": (lambda model: (model / "config.json").write_text("{"), ("config.json", "not a valid JSON")),
    "a config that is a list": (lambda model: (model / "config.json").write_text("[]"), ("must be a mapping",)),
    "an unknown architecture": (edited("config.json", model_type="llamaa"), ("model type `llamaa`",)),
    "a width that is text": (edited("config.json", hidden_size="big"), ("'hidden_size' expected int",)),
    "heads that do not divide": (edited("config.json", num_attention_heads=5), ("number of attention heads (5)",)),
    "no tokenizer": (without("tokenizer*"), ("tokenizer of model.id",)),
    "an encoder for a task that generates": (an_encoder, ("are not in the weights", "no model that writes text")),
    "code of its own": (
        edited("config.json", model_type="odd", auto_map={"AutoConfig": "odd.Config"}),
        ("contains custom code", "say so on the command line: model.trust_remote_code=true"),
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_folder_that_holds_no_model(place: Place, case: str) -> None:
    change, says = MODELS[case]
    shutil.copytree(place.model, "model")
    change(Path("model"))
    folder = place.experiment(model={"id": "./model"})
    place.refuses("run", folder, says=("cannot load the", "'./model'", "fix: ", *says))


def test_a_tokenizer_without_an_end_token(place: Place) -> None:
    shutil.copytree(place.model, "model")
    edited("tokenizer_config.json", eos_token=None)(Path("model"))
    folder = place.experiment(model={"id": "./model"}, train={"evaluate": "none"})
    place.refuses("run", folder, says=("no end-of-sequence token", "set eos_token in the model's tokenizer_config"))


@pytest.mark.parametrize("template", ["{{ ", "{{ ''.__class__.__mro__ }}"])
def test_a_chat_template_that_fails(place: Place, template: str) -> None:
    shutil.copytree(place.model, "model")
    Path("model/chat_template.jinja").write_text(template)
    folder = place.experiment(model={"id": "./model"}, generation={"chat_template": True})
    place.refuses("run", folder, says=("generation.chat_template", "the template", "chat_template=false"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nomodel", ("no folder at nomodel", "config.json and safetensors")),
        ("model", ("'model' may mean a hub id", "write ./model")),
        ("org/tiny", ("'org/tiny'", "offline, use a local folder")),
        ("", ("model.id ''",)),
        ("package:", ("'package:' names no file in a package", "package:<module>/<file or folder>")),
        ("package:nosuch/x", ("'package:nosuch/x'", "'nosuch' is not installed")),
        ("package:os/../../etc", ("'package:os/../../etc'", "'os' is a single module")),
        ("package:peft/../../../../../../etc/hostname", ("no such file in the package",)),
        ("package:escape/outside/secret.txt", ("'package:escape/outside/secret.txt'", "no such file in the package")),
        ("package:escape/inside.txt", ("'package:escape/inside.txt'", "no installed package is named 'escape'")),
    ],
)
def test_a_model_reference_that_leads_nowhere_or_outside(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, says: tuple[str, ...]
) -> None:
    Path("model").mkdir()
    Path("elsewhere").mkdir()
    Path("elsewhere/secret.txt").write_text("secret")
    package = Path("packages/escape")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "inside.txt").write_text("inside")
    (package / "outside").symlink_to(place.root / "elsewhere")
    monkeypatch.syspath_prepend(place.root / "packages")
    place.refuses("run", place.experiment(model={"id": name}), says=says)


def test_a_cache_that_cannot_be_written(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = Path("packages")
    (packages / "tiny_gguf").mkdir(parents=True)
    (packages / "tiny_gguf/__init__.py").write_text("")
    (packages / "tiny_gguf/tiny.gguf").write_bytes(b"GGUF")
    (packages / "tiny_gguf-1.0.dist-info").mkdir()
    (packages / "tiny_gguf-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(place.root / "packages")
    Path("file").write_text("")
    monkeypatch.setenv("PEFTLAB_CACHE", str(place.root / "file"))
    folder = place.experiment(model={"id": "package:tiny_gguf/tiny.gguf"})
    place.refuses("run", folder, says=("cannot write the cache folder", "set PEFTLAB_CACHE to a writable folder"))
    monkeypatch.setenv("PEFTLAB_CACHE", str(place.root / "cache"))
    place.refuses("run", folder, says=("tiny.gguf cannot be read as a GGUF model",))


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_data_that_may_not_be_read(place: Place) -> None:
    folder = place.experiment()
    Path("task/train.jsonl").chmod(0)
    place.refuses("run", folder, says=("train.jsonl", "permission"))


@pytest.mark.parametrize("results", ["file", "file/inside", "/proc/nowhere"])
def test_a_results_folder_that_cannot_be(place: Place, results: str) -> None:
    Path("file").write_text("")
    says = (f"cannot write to the results folder {results}", "with --results")
    place.refuses("run", place.experiment(), "--results", results, says=says)


# -------------------------------------------------------------------------------------------- code that is not ours


@pytest.fixture
def outside(place: Place, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that leaves a mark when it is imported; returns where."""
    mark = place.root / "imported"
    package = Path("packages/received_code")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(mark)!r}, 'w')\nPLUGIN = 'no plug-in'\n")
    monkeypatch.syspath_prepend(place.root / "packages")
    monkeypatch.delitem(sys.modules, "received_code", raising=False)
    return mark


@pytest.mark.parametrize("what", ["grader", "engine"])
def test_code_that_a_config_names_runs_only_when_the_user_names_it(place: Place, outside: Path, what: str) -> None:
    name = "received_code:PLUGIN"
    task = place.task(**({"grader": {"name": name}} if what == "grader" else {}))
    groups: dict[str, Any] = {"generation": {"engine": name}} if what == "engine" else {}
    folder = place.experiment(task=task, **groups)
    says = ("the config names code outside peftlab: 'received_code:PLUGIN'", "--plugins received_code")
    place.refuses("run", folder, says=says)
    place.refuses("run", folder, "--plugins", "peft,another", says=says)
    place.runs("check", "--no-model", folder)
    assert not outside.exists()
    kind = {"grader": "Grader", "engine": "Engine"}[what]
    place.refuses("run", folder, "--plugins", "another,received_code", says=(f"is a str, not a {kind}", "export a"))
    assert outside.exists()
    place.refuses(
        "run",
        place.experiment(name="lora/other", task=place.task(grader={"name": "received_code:NOTHING"})),
        says=("cannot load the plug-in 'received_code:NOTHING'", "check the module and attribute"),
    )


def test_code_beside_a_task_of_ones_own_is_refused_and_not_run(place: Place) -> None:
    path = place.task()
    path.with_suffix(".py").write_text("open('made', 'w')")
    folder = place.experiment(task=path)
    place.refuses("run", folder, says=("toy.py would run as part of the task", "remove the .py"))
    place.refuses("check", path, says=("toy.py would run as part of the task",))
    assert not Path("made").exists()


def test_a_received_folder_cannot_ask_for_the_models_own_code(place: Place) -> None:
    folder = place.experiment(model={"trust_remote_code": True})
    says = ("asks to run code that comes with the model (model.trust_remote_code)", "on the command line")
    place.refuses("run", folder, says=says)
    place.runs("check", "--no-model", folder, "model.trust_remote_code=true")


def test_a_received_record_cannot_ask_for_the_models_own_code(place: Place) -> None:
    place.runs("run", place.experiment(), "model.trust_remote_code=true")
    says = ("asks to run code that comes with the model", "on the command line")
    place.refuses("evaluate", place.record(), "generation.max_new_tokens=2", says=says)
    place.runs("evaluate", place.record(), "generation.max_new_tokens=2", "model.trust_remote_code=true")


@pytest.mark.parametrize("name", ["a b", "-x", ".hidden", "x\ny", "lo;ra"])
def test_a_folder_whose_name_cannot_name_a_result(place: Place, name: str) -> None:
    place.refuses("run", place.experiment(name=f"lora/{name}"), says=("cannot name a result", "letters, digits"))


@pytest.mark.parametrize("name", ["../escaped", "a/b", "", "."])
def test_a_new_experiment_stays_where_experiments_are(place: Place, name: str) -> None:
    place.refuses("new", "full", name, says=("cannot name an experiment", "letters, digits"))
    assert not list(place.root.rglob("training_params.json"))


def test_a_task_name_stays_inside_the_results(place: Place) -> None:
    """The names of a task's file and of its folders are in no path of the results but as one plain name."""
    path = place.task()
    odd = path.with_name("..yaml")
    path.rename(odd)
    text = place.runs("run", place.experiment(task=f"task/../task/{odd.name}"), "train.evaluate=none")
    assert "finished" in text
    found = {path.split("/")[0] for path in left_behind(place.root)}
    assert found <= {"temporary_results", "results"}
    assert not list(place.root.parent.glob("*results"))


# ---------------------------------------------------------------------------------------------------- finished runs


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def finished(
    finished_folder: Path, shared_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Place:
    """A place with a finished run of two seeds and one that was cleaned; made once, so tests must leave it as it is."""
    monkeypatch.chdir(finished_folder)
    place = Place(finished_folder, shared_model, capsys)
    if not Path("experiments").exists():
        folder = place.experiment()
        place.runs("run", folder)
        place.runs("run", folder, "seed=1")
        cleaned = place.experiment(name="lora/cleaned", optim={"learning_rate": 2e-2})
        place.runs("run", cleaned)
        place.runs("run", cleaned, "--clean")
    return place


def key_of(place: Place, name: str = "lora--toy--toy--seed0") -> str:
    [path] = place.root.glob(f"*results/{name}*.json")
    return str(json.loads(path.read_text())["key"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["optim.learning_rate=1"], ("optim.learning_rate belongs to the training", "run it with that setting")),
        (["train.max_steps=9"], ("train.max_steps belongs to the training",)),
        (["seed=3"], ("'seed' belongs to the training",)),
        (["task=gsm8k"], ("task=... makes another run", "--task NAME")),
        (["max_new_tokens=3"], ("unknown key 'max_new_tokens'", "did you mean 'generation.max_new_tokens'?")),
        (["generation.max_new_token=3"], ("'max_new_token'", "did you mean 'max_new_tokens'?")),
        (["generatio.max_new_tokens=3"], ("unknown group 'generatio'", "nearest: generation")),
        (["generation.max_new_tokens=few"], ("'max_new_tokens' = \"few\"", "valid integer")),
        (["generation.engine=hff"], ("engine 'hff'", "did you mean 'hf'?")),
        (["--task", "gsm8kk"], ("unknown task 'gsm8kk'", "did you mean 'gsm8k'?")),
        (["--checkpoint", "banana"], ("--checkpoint banana", "last, best, or the number of a step")),
        (["--checkpoint=-1"], ("--checkpoint -1", "last, best, or the number of a step")),
        (["--checkpoint", "7"], ("no weights of step 7 were kept", "load_best_model_at_end=true")),
        (["--checkpoint", "best"], ("no validation was made", "name a step, or 'last'")),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_an_evaluation_that_cannot_be(finished: Place, words: list[str], says: tuple[str, ...]) -> None:
    finished.refuses("evaluate", key_of(finished), *words, says=says)


@pytest.mark.parametrize("verb", [["evaluate"], ["results", "show"], ["compare"]], ids=" ".join)
@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("lora/toyy", ("no run 'lora/toyy'", "did you mean 'lora/toy'?")),
        ("ffffffff", ("no run 'ffffffff'", "peftlab results")),
        ("temporary_results/nosuch.json", ("no run 'temporary_results/nosuch.json'", "peftlab results")),
    ],
)
def test_a_run_that_is_not_there(finished: Place, verb: list[str], reference: str, says: tuple[str, ...]) -> None:
    finished.refuses(*verb, reference, says=says)


def test_a_reference_that_names_several_runs(finished: Place) -> None:
    says = ("'lora/toy' names 2 runs", "seed 0", "seed 1", "give the key of one")
    finished.refuses("results", "show", "lora/toy", says=says)


def test_an_ambiguous_prefix(finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("temporary_results", tmp_path / "temporary_results")
    monkeypatch.chdir(tmp_path)
    for path in Path("temporary_results").glob("*.json"):
        plain = json.loads(path.read_text())
        path.write_text(json.dumps({**plain, "key": "abcd" + plain["key"][4:]}))
    place = Place(tmp_path, finished.model, finished._capsys)
    place.refuses("evaluate", "abcd", says=("'abcd' is ambiguous", "abcd", "give more of the key"))


def test_weights_that_were_cleaned(finished: Place) -> None:
    key = key_of(finished, "lora--cleaned")
    says = ("no saved weights at", "they were cleaned", "--rerun")
    finished.refuses("evaluate", key, "generation.max_new_tokens=2", says=says)
    assert "finished before" in finished.runs("run", "experiments/lora/cleaned")


def test_a_bare_model_needs_a_task(finished: Place) -> None:
    finished.refuses("evaluate", str(finished.model), says=("which task should", "--task NAME"))
    finished.refuses("evaluate", "package:nosuch/x", says=("which task should", "--task NAME"))
    finished.refuses("evaluate", "hub:org/tiny", "--task", "task/toy.yaml", says=("'org/tiny'", "use a local folder"))
    finished.refuses("evaluate", "seed=1", says=("no run is named", "a record's path"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compare", "--metric", "exact_mach"], ("metric 'exact_mach'", "did you mean 'exact_match'?")),
        (["compare", "--task", "toyy"], ("task 'toyy'", "tasks there: toy")),
        (["show", "gsm8kk"], ("unknown task 'gsm8kk'", "did you mean 'gsm8k'?")),
        (["new", "loraa", "x"], ("unknown method 'loraa'", "did you mean 'lora'?")),
        (["check", "nosuch.yaml"], ("nosuch.yaml", "fix: ")),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_other_verbs(finished: Place, words: list[str], says: tuple[str, ...]) -> None:
    finished.refuses(*words, says=says)


# ------------------------------------------------------------------------------------------------------ real processes


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
