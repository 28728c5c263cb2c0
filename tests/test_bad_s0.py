"""Mistakes in files of dialect s0: exit code 2, file, key and value named, nothing left; `run` and `check` agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toy
from peftlab.dialects.s0 import DEFAULTS_FILE
from refusals import Place

PARAMETERS = "training_params.json"


def flat(place: Place, own: Any = None, *, shared: Any = None, adapter: Any = toy.LORA) -> Path:
    """An experiment of two steps on the toy model; what is given replaces its keys. Text is written as it is."""
    plain = {
        "model_id": str(place.model),
        "dtype": "float32",
        "max_seq_length": 64,
        "batch_size_eval": 6,
        "max_steps": 2,
        "eval_steps": 2,
    }
    folder = place.root / "experiments" / "lora" / "flat"
    folder.mkdir(parents=True)
    own = {**plain, **(own or {})} if own is None or isinstance(own, dict) else own
    for file, content in (
        (folder / PARAMETERS, own),
        (folder / "adapter_config.json", adapter),
        (place.root / DEFAULTS_FILE, shared),
    ):
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            file.write_text(json.dumps(content))
    return folder.relative_to(place.root)


def test_the_same_folder_without_a_mistake_runs(place: Place) -> None:
    folder = flat(place, shared={"batch_size": 3})
    assert "finished" in place.runs("run", folder, f"task={place.task()}", "data.forgetting=null")


KEYS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "an unknown key": ({"batchsize": 4}, ("unknown key 'batchsize'", "did you mean 'batch_size'?")),
    "a key of the neighbours": ({"warmup_steps": 4}, ("unknown key 'warmup_steps'", "keys of dialect s0: model_id")),
    "beside a group": (
        {"optim": {"learning_rate": 1e-3}},
        ("unknown key 'model_id'", "beside 'optim'", "two styles", "did you mean 'model.id'"),
    ),
    "an unknown type": ({"dtype": "int2"}, ("'dtype' = \"int2\"", "'bfloat16'", "'int8'")),
    "a batch as text": ({"batch_size": "4"}, ("'batch_size' = \"4\"", "valid integer")),
    "a batch of true": ({"batch_size": True}, ("'batch_size' = true", "valid integer")),
    "a batch of none": ({"batch_size": 0}, ("'batch_size' = 0", "greater than 0")),
    "an evaluation batch of none": ({"batch_size_eval": 0}, ("'batch_size_eval' = 0", "greater than 0")),
    "half a step": ({"max_steps": 2.5}, ("'max_steps' = 2.5", "valid integer")),
    "no steps": ({"max_steps": 0}, ("'max_steps' = 0", "greater than 0")),
    "no evaluation": ({"eval_steps": 0}, ("'eval_steps' = 0", "greater than 0")),
    "null for a number": ({"eval_steps": None}, ("'eval_steps' = null", "valid integer")),
    "evaluation beyond the end": ({"eval_steps": 3}, ("eval_steps (3) is larger than max_steps (2)",)),
    "rows of nothing": ({"max_seq_length": 0}, ("'max_seq_length' = 0", "greater than 1")),
    "clipping below zero": ({"grad_norm_clip": -1}, ("'grad_norm_clip' = -1", "greater than or equal to 0")),
    "a seed below zero": ({"seed": -1}, ("'seed' = -1", "greater than or equal to 0")),
    "1 for true": ({"use_gc": 1}, ("'use_gc' = 1", "valid boolean")),
    "a template without its field": ({"query_template": "Q: A:"}, ("'query_template' = \"Q: A:\"", "{query}")),
    "a template that asks for more": ({"query_template": "{query} {answer}"}, ("'query_template'", "no other field")),
    "a template that reaches into objects": (
        {"query_template": "{query} {query.__class__}"},
        ("'query_template'", "no other field"),
    ),
    "a template that is broken": ({"query_template": "{query} {"}, ("'query_template'", "Single '{'")),
    "an unknown optimizer": ({"optimizer_type": "AdamWW"}, ("unknown optimizer_type 'AdamWW'", "'AdamW'?")),
    "an optimizer that wants a closure": ({"optimizer_type": "LBFGS"}, ("unknown optimizer_type 'LBFGS'",)),
    "a rate as text": ({"optimizer_kwargs": {"lr": "1e-4"}}, ("'optimizer_kwargs'", "'lr' must be a number")),
    "a rate of zero": ({"optimizer_kwargs": {"lr": 0}}, ("'optimizer_kwargs'", "'lr' must be above 0")),
    "a decay below zero": ({"optimizer_kwargs": {"weight_decay": -1}}, ("'weight_decay' must be a number",)),
    "no rate for one of peft's": ({"optimizer_type": "lora-fa", "optimizer_kwargs": {}}, ("names no 'lr'",)),
    "no rate and no schedule": ({"lr_scheduler": None, "optimizer_kwargs": {}}, ("names no 'lr'",)),
    "a decay that there is not": ({"optimizer_type": "Rprop"}, ("Rprop has no weight_decay", "remove it")),
    "an unknown schedule": ({"lr_scheduler": "linear"}, ("'lr_scheduler' = \"linear\"", "'cosine'")),
    "no limit": ({"generation_kwargs": {}}, ("names neither max_length nor max_new_tokens",)),
    "a way of generating that is not there": (
        {"generation_kwargs": {"max_length": 9, "repetition_penalty": 1.1}},
        ("'generation_kwargs'", "'repetition_penalty'", "use one of: do_sample"),
    ),
    "a limit as text": ({"generation_kwargs": {"max_length": "9"}}, ("[generation]", "'max_length' = \"9\"")),
    "an unknown task": ({"task": "metamath_gsm9k"}, ("unknown task 'metamath_gsm9k'", "'metamath_gsm8k'?")),
}


@pytest.mark.parametrize("case", KEYS)
def test_a_key_that_cannot_be(place: Place, case: str) -> None:
    own, says = KEYS[case]
    folder = flat(place, own)
    for verb in (("run",), ("check", "--no-model")):
        place.refuses(*verb, folder, says=(f"{folder}/{PARAMETERS}", *says) if "task" not in own else says)


FILES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "a key twice": (b'{"max_steps": 5, "max_steps": 6}', ("key 'max_steps' is given twice", "keep one")),
    "a key twice further down": (b'{"optimizer_kwargs": {"lr": 1, "lr": 2}}', ("key 'lr' is given twice",)),
    "10 MB": (b'{"query_template": "' + b"x" * 10_000_000 + b'"}', ("is larger than", "really a config file?")),
    "no UTF-8": (b'{"query_template": "{query} \xe4"}', ("is not UTF-8", "save it as UTF-8")),
    "UTF-16": ('{"max_steps": 5}'.encode("utf-16"), ("is not UTF-8",)),
    "a list": (b'[{"max_steps": 5}]', ("holds a list", "write it as {...}")),
    "not a number": (b'{"grad_norm_clip": NaN}', ("'grad_norm_clip' = NaN", "write a number")),
    "Python": (b"{'max_steps': 5}", ("is not valid JSON", "line 1")),
    "a tab in a text": (b'{"query_template": "\t{query}"}', ("is not valid JSON", "control character")),
}


@pytest.mark.parametrize("below_defaults", [True, False])
@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_read(place: Place, case: str, below_defaults: bool) -> None:
    content, says = FILES[case]
    folder = flat(place, content, shared={} if below_defaults else None)
    place.refuses("run", folder, says=(PARAMETERS, *says))


SHARED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "an unknown key": ({"batchsize": 4}, ("unknown key 'batchsize'", "did you mean 'batch_size'?")),
    "a wrong type": ({"compile": "yes"}, ("'compile' = \"yes\"", "valid boolean")),
    "a group": ({"optim": {}}, ("unknown key 'optim'",)),
    "broken": (b"{", ("is not valid JSON",)),
    "a list": (b"[]", ("holds a list",)),
    "a key twice": (b'{"seed": 1, "seed": 2}', ("key 'seed' is given twice",)),
}


@pytest.mark.parametrize("case", SHARED)
def test_a_mistake_in_the_shared_defaults_is_said_of_them(place: Place, case: str) -> None:
    content, says = SHARED[case]
    folder = flat(place, shared=content)
    place.refuses("run", folder, says=(f"{place.root}/{DEFAULTS_FILE}", *says))


def test_a_value_of_the_defaults_that_no_longer_fits_is_said_of_the_own_file(place: Place) -> None:
    folder = flat(place, {"max_steps": 30}, shared={"max_steps": 600, "eval_steps": 60})
    (folder / PARAMETERS).write_text('{"max_steps": 30}')
    place.refuses("run", folder, says=(f"{folder}/{PARAMETERS}", "eval_steps (60) is larger than max_steps (30)"))


def test_an_adapter_without_its_type(place: Place) -> None:
    folder = flat(place, adapter={"r": 8})
    place.refuses("run", folder, says=(f"{folder}/adapter_config.json: 'peft_type' is required", '"peft_type": "LORA"'))


def test_the_flag_names_a_dialect_that_there_is_and_that_fits(place: Place) -> None:
    groups = place.experiment()
    place.refuses("run", "--dialect", "s0", groups, says=("'model'", "groups of settings", "leave out --dialect s0"))
    place.refuses("run", "--dialect", "s00", groups, says=("--dialect", "'s00'", "did you mean 's0'?"))
    single = place.root / "one.yaml"
    single.write_text("task: gsm8k\nmodel: {id: a/b}\n")
    place.refuses("run", "--dialect", "s0", single, says=("one.yaml", "folders of JSON", "leave out --dialect s0"))


def test_a_shared_file_in_the_experiment_itself_is_no_experiment(place: Place) -> None:
    folder = place.root / "experiments" / "lora"
    folder.mkdir(parents=True)
    (folder / DEFAULTS_FILE).write_text("{}")
    place.refuses("run", "experiments/lora", says=("holds no experiment",))


def test_a_prefix_from_a_text_for_what_has_none_is_refused_before_loading(place: Place) -> None:
    """The model's name shows that nothing was looked for: it does not exist."""
    folder = flat(place, {"init_kv_cache_prefix": "Think.", "model_id": "nobody/nothing"})
    place.refuses("run", folder, f"task={place.task()}", says=("model.kv_prefix_text", "LORA has no key-value prefix"))
