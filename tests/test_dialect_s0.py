"""Experiments of dialect s0: which folders are recognised, how files merge, what every key becomes, and a whole run.

The expectations are worked from the benchmark's description by hand; torch and peft are asked where they decide.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import peftlab.dialects.s0 as s0
import toy
from peftlab.cli import main
from peftlab.config import loading, task
from peftlab.config.groups import BatchSettings
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.job import runs
from peftlab.loop import optim
from peftlab.records.record import Record
from peftlab.records.store import RunStore
from peftlab.rows.batching import order

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
OURS = sorted(path for path in EXPERIMENTS.glob("*/llama-3.2-3B*"))
ADAPTER = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}
SHARED = {"optimizer_kwargs": {"lr": 1e-3, "weight_decay": 0.2}, "max_steps": 60, "eval_steps": 20, "batch_size": 2}


def folder(
    root: Path, parameters: Any = None, *, name: str = "lora/a", adapter: Any = ADAPTER, shared: Any = None
) -> Path:
    """Write an experiment below `root/experiments`, and the shared defaults where the benchmark has them."""
    path = root / "experiments" / name
    path.mkdir(parents=True)
    for file, content in (
        (path / "adapter_config.json", adapter),
        (path / "training_params.json", parameters),
        (root / s0.DEFAULTS_FILE, shared),
    ):
        if content is not None:
            file.write_text(json.dumps(content))
    return path


def setting(spec: RunSpec, name: str) -> Any:
    found: Any = spec
    for part in name.split("."):
        found = getattr(found, part)
    return found


# ------------------------------------------------------------------------------------------------- what keys become

TABLE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"model_id": "org/other"}, {"model.id": "org/other"}),
    ({"dtype": "float32"}, {"model.dtype": "float32", "quant.method": None}),
    ({"dtype": "float16"}, {"model.dtype": "float16"}),
    ({"dtype": "int8"}, {"model.dtype": "bfloat16", "quant.method": "bnb-int8", "quant.compute_dtype": None}),
    ({"dtype": "int4"}, {"model.dtype": "bfloat16", "quant.method": "bnb-fp4", "quant.double_quant": False}),
    ({"max_seq_length": 300}, {"data.max_length": 300}),
    ({"batch_size": 7}, {"batch.per_device_train_batch_size": 7, "batch.gradient_accumulation_steps": 1}),
    ({"batch_size_eval": 33}, {"batch.per_device_eval_batch_size": 33}),
    ({"max_steps": 400}, {"train.max_steps": 400}),
    ({"eval_steps": 99}, {"train.eval_steps": 99}),
    ({"compile": True}, {"model.compile": True}),
    ({"use_gc": True}, {"model.gradient_checkpointing": True}),
    ({"seed": 5, "dtype": "bfloat16"}, {"seed": 5, "data.data_seed": 0}),
    ({"grad_norm_clip": 0}, {"optim.max_grad_norm": 0}),
    ({"grad_norm_clip": 0.5}, {"optim.max_grad_norm": 0.5}),
    ({"optimizer_type": "Adam"}, {"optim.optimizer": "Adam", "optim.weight_decay": 0.1}),
    ({"optimizer_kwargs": {"lr": 3e-4}}, {"optim.learning_rate": 3e-4, "optim.weight_decay": 0.01}),
    ({"optimizer_kwargs": {"weight_decay": 0.3}}, {"optim.learning_rate": 1e-3, "optim.weight_decay": 0.3}),
    ({"optimizer_kwargs": {}}, {"optim.learning_rate": 1e-3, "optim.weight_decay": 0.01}),
    (
        {"optimizer_kwargs": {"lr": 1e-4, "betas": [0.8, 0.9], "eps": 1e-6}},
        {"optim.optimizer_kwargs": {"betas": [0.8, 0.9], "eps": 1e-6}},
    ),
    (
        {"optimizer_type": "SGD", "optimizer_kwargs": {"lr": 1, "momentum": 0.9}},
        {"optim.learning_rate": 1.0, "optim.weight_decay": 0.0, "optim.optimizer_kwargs": {"momentum": 0.9}},
    ),
    (
        {"optimizer_type": "Muon", "optimizer_kwargs": {}},
        {"optim.learning_rate": 1e-3, "optim.weight_decay": 0.1},
    ),
    (
        {"optimizer_type": "Rprop", "optimizer_kwargs": {"lr": 0.02}},
        {"optim.learning_rate": 0.02, "optim.weight_decay": 0.0},
    ),
    (
        {"optimizer_type": "lora+", "optimizer_kwargs": {"lr": 1e-4, "loraplus_lr_ratio": 8, "weight_decay": 0.1}},
        {"optim.weight_decay": 0.0, "optim.optimizer_kwargs": {"loraplus_lr_ratio": 8}},
    ),
    (
        {
            "optimizer_type": "lora+",
            "optimizer_kwargs": {"lr": 1e-4, "loraplus_lr_ratio": 8, "loraplus_weight_decay": 0.3},
        },
        {"optim.weight_decay": 0.3, "optim.optimizer_kwargs": {"loraplus_lr_ratio": 8}},
    ),
    (
        {"optimizer_type": "lora-fa", "optimizer_kwargs": {"lr": 1e-4, "r": 4, "lora_alpha": 8}},
        {"optim.optimizer": "lora-fa", "optim.weight_decay": 0.0, "optim.optimizer_kwargs": {"r": 4, "lora_alpha": 8}},
    ),
    (
        {"optimizer_type": "riemannian", "optimizer_kwargs": {"lr": 1e-4, "reg": 0.1}},
        {"optim.optimizer": "riemannian", "optim.weight_decay": 0.01, "optim.optimizer_kwargs": {"reg": 0.1}},
    ),
    ({"lr_scheduler": None}, {"optim.lr_scheduler_type": "constant", "optim.warmup_steps": 0}),
    ({"lr_scheduler": "cosine"}, {"optim.lr_scheduler_type": "cosine"}),
    ({"use_amp": True}, {"train.mixed_precision": "fp16"}),
    ({"autocast_adapter_dtype": False}, {"model.autocast_adapter_dtype": False}),
    ({"attn_implementation": "eager"}, {"model.attn_implementation": "eager"}),
    (
        {"generation_kwargs": {"max_new_tokens": 20}},
        {"generation.max_new_tokens": 20, "generation.max_length": None, "generation.limits": "batch"},
    ),
    (
        {"generation_kwargs": {"max_length": 90, "max_new_tokens": None}},
        {"generation.max_new_tokens": 90, "generation.max_length": 90},
    ),
    (
        {"generation_kwargs": {"max_length": 90, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 50}},
        {"generation.do_sample": True, "generation.temperature": 0.7, "generation.top_p": 0.9, "generation.top_k": 50},
    ),
    ({"generation_kwargs": {"max_length": 90, "num_beams": 3}}, {"generation.num_beams": 3}),
    ({"query_template": "Q: {query}\nA:"}, {"task.prompt": "Q: {question}\nA:", "data.prompt": "Q: {question}\nA:"}),
    ({"query_template": "{{{query}}}"}, {"task.prompt": "{{{question}}}"}),
    ({"init_kv_cache_prefix": "Think."}, {"model.kv_prefix_text": "Think."}),
    ({"task": "gsm8k", "dtype": "float16"}, {"task.name": "gsm8k"}),
]


@pytest.mark.parametrize(("given", "expected"), TABLE, ids=[json.dumps(given)[:70] for given, _ in TABLE])
def test_what_a_key_becomes(tmp_path: Path, given: dict[str, Any], expected: dict[str, Any]) -> None:
    spec = loading.load(folder(tmp_path, given))
    assert {name: setting(spec, name) for name in expected} == expected


def test_every_documented_key_is_in_the_table() -> None:
    assert {key for given, _ in TABLE for key in given} - {"task"} == set(s0.Flat.model_fields) == set(s0.HOMES)


def test_the_documented_defaults(tmp_path: Path) -> None:
    """Section by section of the benchmark's table, for a folder with nothing but an adapter."""
    spec = loading.load(folder(tmp_path), dialect="s0")
    expected: dict[str, Any] = {
        "task.name": "metamath_gsm8k",
        "seed": 0,
        "adapter": ADAPTER,
        "model.id": "meta-llama/Llama-3.2-3B",
        "model.dtype": "bfloat16",
        "model.attn_implementation": None,
        "model.autocast_adapter_dtype": True,
        "model.gradient_checkpointing": False,
        "model.compile": False,
        "model.kv_prefix_text": None,
        "quant.method": None,
        "optim.optimizer": "AdamW",
        "optim.learning_rate": 1e-4,
        "optim.weight_decay": 0.1,
        "optim.optimizer_kwargs": {},
        "optim.lr_scheduler_type": "cosine",
        "optim.max_grad_norm": 1.0,
        "batch.per_device_train_batch_size": 4,
        "batch.per_device_eval_batch_size": 50,
        "batch.order": "bucketed-file",
        "batch.bucket_batches": 20,
        "batch.eval_order": "file",
        "train.max_steps": 5000,
        "train.eval_steps": 250,
        "train.mixed_precision": "no",
        "generation.max_length": 800,
        "generation.max_new_tokens": 300,
        "generation.limits": "batch",
        "generation.stop": (),
        "generation.do_sample": False,
        "data.max_length": 768,
        "data.loss_mask": "everything",
        "data.forgetting": "finewiki",
        "data.prompt": None,
        "task.prompt": "Question: {question} Think step by step.\nAnswer:",
    }
    assert {name: setting(spec, name) for name in expected} == expected
    assert optim.warmup_steps(spec.optim, 5000) == 500
    assert "s0" in spec.notes[0]


@pytest.mark.parametrize("steps", [1, 5, 9, 10, 11, 30, 123, 990, 999, 1000, 5000])
def test_the_warm_up_is_a_tenth_rounded_down(tmp_path: Path, steps: int) -> None:
    spec = loading.load(folder(tmp_path, {"max_steps": steps, "eval_steps": 1}))
    assert optim.warmup_steps(spec.optim, steps) == int(0.1 * steps)


def test_a_shorter_run_on_the_command_line_has_a_shorter_warm_up(tmp_path: Path) -> None:
    spec = loading.load(
        folder(tmp_path), dialect="s0", overrides={"train.max_steps": 40, "train.eval_steps": 20, "model.id": "a/b"}
    )
    assert optim.warmup_steps(spec.optim, 40) == 4


@pytest.mark.parametrize("budget", [{"num_train_epochs": 0.01}, {"max_train_samples": 400}, {"max_train_tokens": 9000}])
def test_another_budget_on_the_command_line_has_a_tenth_of_it_as_warm_up(
    tmp_path: Path, budget: dict[str, float]
) -> None:
    overrides = {"model.id": "a/b", **{f"train.{name}": value for name, value in budget.items()}}
    spec = loading.load(folder(tmp_path, {"max_steps": 5000}), overrides=overrides)
    assert optim.warmup_steps(spec.optim, 100) == 10


def test_defaults_of_optimizers_are_those_of_torch_and_peft() -> None:
    """A class that is new in torch shows here."""
    classes = {
        name: inspect.signature(value).parameters
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name != "Optimizer"
    }
    found = {
        name: (float(taken["lr"].default), float(taken["weight_decay"].default) if "weight_decay" in taken else None)
        for name, taken in classes.items()
    }
    unusable = {"LBFGS", "SparseAdam"}  # want a closure, or sparse gradients
    assert {name: pair for name, pair in found.items() if name not in unusable} == dict(s0.TORCH_OPTIMIZERS)
    from peft.optimizers import create_lorafa_optimizer

    assert inspect.signature(create_lorafa_optimizer).parameters["weight_decay"].default == 0.0


def test_what_a_library_decides_is_written_out_and_said(tmp_path: Path) -> None:
    spec = loading.load(folder(tmp_path, {"optimizer_kwargs": {"lr": 1e-5}}, name="full-finetuning/x", adapter=None))
    assert (spec.method, spec.optim.weight_decay) == ("full", 0.01)
    assert any("weight_decay" in note and "0.01" in note for note in spec.notes)
    silent = loading.load(folder(tmp_path, {"max_steps": 400}, name="lora/b"))
    assert len(silent.notes) == 1


def test_the_order_of_rows_is_the_benchmarks_with_its_tail_once() -> None:
    """By the description: slices of 20 batches in file order, each sorted longest first; the last slice once."""
    lengths = [index * 37 % 101 + 1 for index in range(205)]
    expected: list[int] = []
    for start in range(0, 205, 80):
        part = list(range(start, min(start + 80, 205)))
        while part:
            longest = max(part, key=lambda row: (lengths[row], -row))
            part.remove(longest)
            expected.append(longest)
    settings = BatchSettings(order="bucketed-file", per_device_train_batch_size=4)
    for seed, epoch in ((0, 0), (1, 0), (0, 3)):
        assert order(lengths, settings, 4, seed, epoch) == expected
    assert sorted(expected) == list(range(205))


def test_the_task_is_asked_by_the_column_that_templates_mean() -> None:
    assert s0.QUERY_COLUMN in task.load(s0.TASK).columns
    assert s0.HOMES["query_template"] == "data.prompt"
    template = s0.Flat.model_fields["query_template"].default
    assert task.load(s0.TASK).prompt == template.replace("{query}", "{question}")


def test_another_task_keeps_its_own_prompt(tmp_path: Path) -> None:
    spec = loading.load(folder(tmp_path), dialect="s0", task="gsm8k")
    assert spec.task.prompt == task.load("gsm8k").prompt


# ---------------------------------------------------------------------------------------------------- recognition

NATIVE = {"task": "gsm8k", "model": {"id": "org/native"}}
RECOGNISED: list[tuple[str, Any, Any, Any, str]] = [
    # what is told, own parameters, adapter, defaults above, the model that shows how it was read
    ("groups", NATIVE, ADAPTER, None, "org/native"),
    ("groups below defaults", NATIVE, ADAPTER, SHARED, "org/native"),
    ("an empty group below defaults", {**NATIVE, "optim": {}}, ADAPTER, SHARED, "org/native"),
    ("flat keys", {"max_steps": 900}, ADAPTER, None, "meta-llama/Llama-3.2-3B"),
    ("flat keys below defaults", {"max_steps": 900}, ADAPTER, {"model_id": "org/shared"}, "org/shared"),
    ("flat keys with a task", {"task": "gsm8k", "max_steps": 900}, ADAPTER, None, "meta-llama/Llama-3.2-3B"),
    ("an adapter alone below defaults", None, ADAPTER, {"model_id": "org/shared"}, "org/shared"),
    ("an empty file below defaults", {}, ADAPTER, {"model_id": "org/shared"}, "org/shared"),
    ("a seed alone below defaults", {"seed": 1}, ADAPTER, {"model_id": "org/shared"}, "org/shared"),
    ("no adapter below defaults", {"seed": 1}, None, {"model_id": "org/shared"}, "org/shared"),
]


@pytest.mark.parametrize("case", RECOGNISED, ids=[case[0] for case in RECOGNISED])
def test_which_style_a_folder_is_written_in(tmp_path: Path, case: tuple[str, Any, Any, Any, str]) -> None:
    _, parameters, adapter, shared, model = case
    spec = loading.load(folder(tmp_path, parameters, adapter=adapter, shared=shared))
    assert spec.model.id == model
    assert bool(spec.notes) == (model != "org/native")


@pytest.mark.parametrize("parameters", [None, {}, {"seed": 1}])
def test_without_defaults_above_what_says_nothing_is_native(tmp_path: Path, parameters: Any) -> None:
    path = folder(tmp_path, parameters)
    with pytest.raises(UserError, match="no task is named"):
        loading.load(path)
    spec = loading.load(path, task="gsm8k", overrides={"model.id": "a/b"})
    assert (spec.notes, spec.train.max_steps, spec.seed) == ((), 1000, (parameters or {}).get("seed", 0))
    told = loading.load(path, dialect="s0")
    assert (told.train.max_steps, told.seed) == (5000, (parameters or {}).get("seed", 0))


def test_the_other_name_of_the_parameter_file(tmp_path: Path) -> None:
    """The benchmark's README writes `training_parameters.json`, and its code reads `training_params.json`."""
    path = folder(tmp_path, {"max_steps": 900})
    (path / "training_params.json").rename(path / "training_parameters.json")
    assert loading.load(path).train.max_steps == 900


def test_windows_line_ends_and_a_byte_order_mark_are_no_mistake(tmp_path: Path) -> None:
    path = folder(tmp_path)
    text = json.dumps({"max_steps": 900, "query_template": "Q: {query}\nA:"}, indent=1).replace("\n", "\r\n")
    (path / "training_params.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    spec = loading.load(path)
    assert (spec.train.max_steps, spec.task.prompt) == (900, "Q: {question}\nA:")


# ---------------------------------------------------------------------------------------------------------- merging


def test_files_merge_key_by_key_and_dicts_whole(tmp_path: Path) -> None:
    shared = {**SHARED, "generation_kwargs": {"max_length": 70, "max_new_tokens": 30}}
    spec = loading.load(folder(tmp_path, {"optimizer_kwargs": {"lr": 5e-4}, "max_steps": 40}, shared=shared))
    assert (spec.train.max_steps, spec.train.eval_steps, spec.batch.per_device_train_batch_size) == (40, 20, 2)
    assert (spec.optim.learning_rate, spec.optim.weight_decay) == (5e-4, 0.01), "not the shared 0.2"
    assert (spec.generation.max_length, spec.generation.max_new_tokens) == (70, 30)
    plain = loading.load(folder(tmp_path, {"max_steps": 40}, name="lora/b", shared=shared))
    assert (plain.optim.learning_rate, plain.optim.weight_decay) == (1e-3, 0.2)
    assert any("max_seq_length" in note for note in plain.notes), "the documented value stands, and it is said"


@pytest.mark.parametrize(
    ("place", "found"),
    [(".", True), ("experiments", True), ("experiments/lora", True), ("..", False), ("experiments/other", False)],
)
def test_where_defaults_are_looked_for(tmp_path: Path, place: str, found: bool) -> None:
    """Above the experiment, up to the folder that holds `experiments`."""
    path = folder(tmp_path / "benchmark", {"seed": 1, "dtype": "float32"})
    (tmp_path / "benchmark" / place).mkdir(exist_ok=True)
    (tmp_path / "benchmark" / place / s0.DEFAULTS_FILE).write_text('{"batch_size": 3}')
    assert loading.load(path).batch.per_device_train_batch_size == (3 if found else 4)


def test_the_nearest_defaults_stand(tmp_path: Path) -> None:
    path = folder(tmp_path, {"dtype": "float32"}, shared={"batch_size": 3})
    (path.parent / s0.DEFAULTS_FILE).write_text('{"batch_size": 5}')
    assert loading.load(path).batch.per_device_train_batch_size == 5


def test_the_command_line_goes_first(tmp_path: Path) -> None:
    spec = loading.load(folder(tmp_path, shared=SHARED), seed=3, overrides={"model.id": "a/b", "optim.weight_decay": 0})
    assert (spec.model.id, spec.seed, spec.optim.weight_decay, spec.optim.learning_rate) == ("a/b", 3, 0, 1e-3)


# ---------------------------------------------------------------------------------------------------- a whole run


def flat_and_native(root: Path) -> tuple[Path, Path]:
    """One experiment in both styles, on a toy model and task."""
    model, toy_task = toy.save_model(root / "model"), toy.write_task(root / "task", train=60)
    flat = {
        "model_id": str(model),
        "dtype": "float32",
        "max_seq_length": 64,
        "batch_size": 3,
        "batch_size_eval": 5,
        "max_steps": 12,
        "eval_steps": 6,
        "seed": 2,
        "grad_norm_clip": 0.7,
        "optimizer_kwargs": {"lr": 0.01},
        "generation_kwargs": {"max_length": 30, "max_new_tokens": 5},
    }
    native = {
        "task": str(toy_task),
        "seed": 2,
        "model": {"id": str(model)},
        "optim": {"learning_rate": 0.01, "weight_decay": 0.01, "max_grad_norm": 0.7, "warmup_steps": 1},
        "batch": {
            "per_device_train_batch_size": 3,
            "per_device_eval_batch_size": 5,
            "order": "bucketed-file",
            "eval_order": "file",
        },
        "train": {"max_steps": 12, "eval_steps": 6},
        "generation": {"max_length": 30, "max_new_tokens": 5, "limits": "batch"},
        "data": {"max_length": 64, "loss_mask": "everything", "forgetting": "finewiki"},
    }
    return folder(root / "flat", {**flat, "task": str(toy_task)}), folder(root / "native", native)


def test_a_flat_folder_trains_as_its_native_spelling(tmp_path: Path) -> None:
    paths = flat_and_native(tmp_path)
    assert len({loading.load(path).text_key({}) for path in paths}) == 1
    no_text = {"data.forgetting": None}  # it lies on the hub
    specs = [loading.load(path, overrides=no_text) for path in paths]
    assert specs[0].train_key == specs[1].train_key, "the same run in two spellings"
    assert specs[0].evaluation_key("test", {}) == specs[1].evaluation_key("test", {})
    records = [runs.run(spec, RunStore(str(tmp_path / f"{number}/results"))) for number, spec in enumerate(specs)]
    first, second = (losses(record) for record in records)
    assert len(first) == 12 and first == second
    assert [found.metrics for found in records[0].evaluations] == [found.metrics for found in records[1].evaluations]
    other = loading.load(paths[0], overrides={**no_text, "data.loss_mask": "answer"})
    assert losses(runs.run(other, RunStore(str(tmp_path / "2/results")))) != first, "the mask matters"


def losses(record: Record) -> list[float]:
    return list(record.curve["loss"])


# ------------------------------------------------------------------------------------------------- our own folders


def test_there_are_twenty_folders_across_methods() -> None:
    specs = [loading.load(path) for path in OURS]
    assert len(specs) >= 20 and len({spec.method for spec in specs}) >= 18
    assert (EXPERIMENTS / "lora" / "llama-3.2-3B-rank32" / "adapter_config.json").is_file()
    assert all(spec.notes and spec.task.name == s0.TASK for spec in specs)
    assert len({spec.train_key for spec in specs}) == len(specs), "no two are the same run"
    alone = [path for path in OURS if not (path / "training_params.json").is_file()]
    assert len(alone) >= 5, "nothing but an adapter"


def test_ours_in_groups_stay_native_below_the_defaults() -> None:
    assert (EXPERIMENTS / s0.DEFAULTS_FILE).is_file()
    for path in (EXPERIMENTS / "lora" / "smollm2-135m-r16", EXPERIMENTS / "full-finetuning" / "minilm"):
        assert loading.load(path).notes == ()


def test_the_shared_defaults_are_the_documented_ones() -> None:
    found = json.loads((EXPERIMENTS / s0.DEFAULTS_FILE).read_text())
    assert found == {name: field.default for name, field in s0.Flat.model_fields.items()}


def test_check_passes_over_the_shared_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path)
    (tmp_path / "experiments" / s0.DEFAULTS_FILE).write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--no-model"]) == 0
    output = capsys.readouterr()
    assert "1 checked, all well" in output.err and "read as dialect s0" in output.out
    assert main(["check", "--no-model", "--dialect", "s0", "experiments/lora/a"]) == 0
    assert main(["run", "experiments/lora"]) == main(["run", "experiments"]) == 2
    output = capsys.readouterr()
    assert "such as experiments/lora/a" in output.err and "unknown file" not in output.err


def test_run_show_and_check_take_the_flag(
    tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(folder(tmp_path).relative_to(tmp_path))
    words = [f"{name}={json.dumps(value)}" for name, value in {"task": small["task"], **small["overrides"]}.items()]
    for verb in ("show", "check", "run"):
        assert main([verb, "--dialect", "s0", path, *words]) == 0
    output = capsys.readouterr()
    assert "[[0 + 0 = 0" in output.out, "the question is trained on too"
    assert "read as dialect s0" in output.out and "read as dialect s0" in output.err


FITS: dict[str, tuple[dict[str, Any], str]] = {
    "fits": (ADAPTER, ""),
    "layers that are not there": ({**ADAPTER, "target_modules": ["query_key_value"]}, "'target_modules'"),
    "a layer too many": ({**ADAPTER, "layers_to_transform": [27]}, "'layers_to_transform'"),
    "C3A": ({"peft_type": "C3A", "block_size": 128, "target_modules": ["q_proj"]}, "'block_size' (= 128)"),
    "BOFT": (
        {"peft_type": "BOFT", "boft_block_size": 0, "boft_block_num": 7, "target_modules": ["q_proj"]},
        "'boft_block_num' (= 7)",
    ),
    "FOURIERFT": ({"peft_type": "FOURIERFT", "n_frequency": 1200, "target_modules": ["q_proj"]}, "'n_frequency'"),
    "VBLORA": ({"peft_type": "VBLORA", "vector_length": 256, "target_modules": ["q_proj"]}, "'vector_length' (= 256)"),
    "SHIRA": ({"peft_type": "SHIRA", "r": 64, "target_modules": ["q_proj"]}, "'r' (= 64)"),
    "TRAINABLE_TOKENS": ({"peft_type": "TRAINABLE_TOKENS", "token_indices": [128000]}, "'token_indices'"),
    "ADAPTION_PROMPT": ({"peft_type": "ADAPTION_PROMPT", "adapter_len": 4, "adapter_layers": 28}, "'adapter_layers'"),
    "a key that peft has not": ({**ADAPTER, "lora_alhpa": 8}, "'lora_alhpa'"),
    "empty keys that peft has not": ({**ADAPTER, "exclude_modules": None, "of_tomorrow": None, "also": []}, ""),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("small")
    overrides = {"train.max_steps": 2, "train.eval_steps": 2, "train.evaluate": "none", "data.forgetting": None}
    model, toy_task = toy.save_model(root / "model"), toy.write_task(root / "task")
    return {"task": str(toy_task), "overrides": {"model.id": str(model), **overrides}}


@pytest.mark.parametrize("case", FITS)
def test_an_adapter_trains_or_the_key_that_does_not_fit_is_named(
    tmp_path: Path, small: dict[str, Any], case: str
) -> None:
    adapter, named = FITS[case]
    spec = loading.load(folder(tmp_path, adapter=adapter, shared=SHARED), **small)
    store = RunStore(str(tmp_path / "results"))
    if not named:
        assert runs.run(spec, store).training["step"] == 2
        return
    with pytest.raises(UserError) as raised:
        runs.run(spec, store)
    assert named in str(raised.value)


MISFITS = {"c3a/llama-3.2-3B-block128", "fourierft/llama-3.2-3B-800", "vblora/llama-3.2-3B-rank4"}


@pytest.mark.slow
@pytest.mark.parametrize("path", OURS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_our_folders_train_on_another_model_or_say_what_does_not_fit(
    tmp_path: Path, small: dict[str, Any], path: Path
) -> None:
    spec = loading.load(path, **small)
    store = RunStore(str(tmp_path / "results"))
    name = f"{path.parent.name}/{path.name}"
    if name not in MISFITS:
        assert runs.run(spec, store).training["step"] == 2
        return
    with pytest.raises(UserError, match=r"mend '\w+' \(= \d+\)"):
        runs.run(spec, store)


@pytest.mark.slow
def test_check_counts_the_parameters_of_our_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *map(str, OURS)]) == 0
    output = capsys.readouterr().out
    assert output.count("counted without weights") >= len(OURS) - 1
    # rank 32 on four projections of 28 layers: 32 * (3072 + out) each, out = 3072, 1024, 1024, 3072
    expected = 28 * 32 * sum(3072 + out for out in (3072, 1024, 1024, 3072))
    assert f"{expected:,} of" in output
