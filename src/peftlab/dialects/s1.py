"""Experiments of lora-ns: one YAML with task, model, peft, dataset and training, put into our own words.

Reads what is read there, by the same defaults, its known mistakes left out: validation rows that are also trained on,
texts without an end. Which settings exist, and what they do, is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from peftlab.config.groups import GROUPS
from peftlab.config.settings import validated
from peftlab.dialects._s1_sections import IDLE, OPTIMIZERS, File, Reading, given
from peftlab.dialects._s1_task import graded_by, is_conversations, metric_named, task_of
from peftlab.errors import UserError, unknown_name
from peftlab.foreign import Dialect, Foreign, Native

SECTIONS = tuple(File.model_fields)
NATIVE = ("task", "adapter", "seed", *GROUPS)
METHODS = {
    "lora": "LORA",
    "prefix-tuning": "PREFIX_TUNING",
    "prompt-tuning": "PROMPT_TUNING",
    "p-tuning": "P_TUNING",
}
VARIANTS = ("lora", "dora", "rslora", "qalora")
STARTS = ("gaussian", "orthogonal", "olora", "pissa", "corda", "eva", "lora_ga")
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}

_PLACEHOLDER = re.compile(r"<[^<>]+>")


# -------------------------------------------------------------------------------------------------- recognising


def recognises(found: Foreign) -> bool:
    """Whether a YAML is written in these sections.

    Raises:
        UserError: It has groups of settings as well.
    """
    if not found.path.is_file() or not found.parameters:
        return False
    own = [key for key in found.parameters if key in SECTIONS and key not in NATIVE]
    native = [key for key in found.parameters if key in NATIVE and key not in SECTIONS]
    if own and native:
        raise UserError(
            f"{found.where}: {_listed(own)} of dialect s1 beside {_listed(native)}: a file is written in one style",
            fix=f"write it with model, adapter, task and groups of settings, or with {', '.join(SECTIONS)}",
        )
    return bool(own)


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


# -------------------------------------------------------------------------------------------------- translating


def to_native(found: Foreign) -> Native:
    """The experiment in groups of settings, with its data set as a task written out.

    Raises:
        UserError: Unknown keys, wrong types, placeholders, or what has no counterpart here.
    """
    if not found.path.is_file():
        raise UserError(f"{found.path}: dialect s1 is written as one YAML file", fix="leave out --dialect s1")
    parameters = found.parameters or {}
    empty = [f"{key} ({value})" for key, value in _leaves(parameters) if _PLACEHOLDER.fullmatch(value.strip())]
    if empty:
        raise UserError(f"{found.where}: still to be filled in: {', '.join(empty)}", fix="write values in their place")
    file = validated(File, parameters, where=found.where, fix="configs/template.yaml shows the keys")
    classifies = _classifies(file, found.where)
    converses = not classifies and is_conversations(file)
    reading = Reading(
        file=file,
        where=found.where,
        given=given(file),
        overrides=found.overrides,
        classifies=classifies,
        converses=converses,
        modes=() if classifies or converses else graded_by(file.task_name),
        notes=["read as dialect s1"],
    )
    task = task_of(reading)
    quant = _quant(reading)
    groups = {
        "model": _model(reading, quantises=bool(quant)),
        "quant": quant,
        "optim": _optim(reading),
        "batch": _batch(reading),
        "train": _train(reading, validates="valid" in task),
        "save": _save(reading),
        "data": _data(reading),
        "track": _track(reading),
    }
    adapter = _adapter(reading)
    idle = [key for key in IDLE if key in reading.given]
    if idle:
        reading.notes.append(f"without effect here: {', '.join(idle)}")
    parameters = {"task": task, "seed": file.training.seed, **groups}
    return Native(parameters=parameters, adapter=adapter, notes=tuple(reading.notes))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, path)
    elif isinstance(value, str):
        yield path, value


def _classifies(file: File, where: str) -> bool:
    kinds = {"SEQ_CLS": True, "CAUSAL_LM": False}
    word, named = file.peft.task_type, file.task_type
    if word is not None and word not in kinds:
        raise UserError(f"{where}: 'peft.task_type' = {word} has no counterpart here", fix=f"use {' or '.join(kinds)}")
    if named is None and word is None:
        raise UserError(f"{where}: 'task_type' is required", fix="write classification or causal_lm")
    if named is None:
        return kinds[str(word)]
    if word is not None and kinds[word] != (named == "classification"):
        raise UserError(f"{where}: 'peft.task_type' = {word} does not go with {named}", fix="mend one of the two")
    return named == "classification"


# ---------------------------------------------------------------------------------------------- model and adapter


def _model(reading: Reading, *, quantises: bool) -> dict[str, Any]:
    """The base model. Beside quantised weights S1 turns all others to float32 (`prepare_model_for_kbit_training`)."""
    model, training = reading.file.model, reading.file.training
    if model.trust_remote_code and "model.trust_remote_code" in reading.given:
        reading.notes.append(
            "model.trust_remote_code: code that comes with a model runs only when the command line says so: "
            "model.trust_remote_code=true"
        )
    half = "bfloat16" if training.bf16 else "float16"
    return {
        "id": model.name_or_path,
        "dtype": "float32" if reading.classifies or quantises else half,
        "gradient_checkpointing": training.gradient_checkpointing,
    }


def _quant(reading: Reading) -> dict[str, Any]:
    """Precision of the base: what `model.quantization` says, else what the optimizer's name implies."""
    said, name = reading.file.model.quantization, reading.file.training.optim
    if "quant.method" in reading.overrides:
        return {}
    if said is not None and said.load_in_8bit and said.load_in_4bit:
        raise reading.error("model.quantization", "asks for 8 and for 4 bits", "choose one")
    if said is not None:
        bits = 8 if said.load_in_8bit else 4 if said.load_in_4bit else None
    elif "optim.optimizer" in reading.overrides:
        bits = None  # another optimizer: the name in the file, and what it implies, are out
    else:
        bits = 8 if "8bit" in name else 4 if "4bit" in name or "qlora" in name else None
        if bits is not None:
            reading.notes.append(
                f"training.optim: {name}: by this name alone the base model is quantised to {bits} bits "
                "(quant.method), the rest of it kept in float32 (model.dtype); for one that is not: quant.method=null "
                "on the command line"
            )
    if bits == 4:
        compute = "bfloat16" if reading.file.training.bf16 else "float16"
        return {"method": "bnb-nf4", "double_quant": True, "compute_dtype": compute}
    return {"method": "bnb-int8"} if bits else {}


def _adapter(reading: Reading) -> dict[str, Any]:
    peft = reading.file.peft
    method = peft.method.lower().replace("_", "-")
    if method not in METHODS:
        raise unknown_name("method", peft.method, METHODS, where=f"{reading.where}: 'peft.method'")
    if peft.inference_mode:
        raise reading.error("peft.inference_mode", "= true trains nothing", "remove it")
    config = {"peft_type": METHODS[method], "task_type": "SEQ_CLS" if reading.classifies else "CAUSAL_LM"}
    if method != "lora":
        return {**config, "num_virtual_tokens": peft.num_virtual_tokens}
    targets = peft.target_modules
    lora = {
        "r": peft.lora_r,
        "lora_alpha": peft.lora_alpha,
        "lora_dropout": peft.lora_dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "bias": peft.bias,
    }
    return {**config, **lora, **_variant(reading)}


def _variant(reading: Reading) -> dict[str, Any]:
    variant, start = reading.file.peft.variant, reading.file.peft.init_lora_weights
    found: dict[str, Any] = {}
    if variant not in VARIANTS:
        raise unknown_name("variant", variant, VARIANTS, where=f"{reading.where}: 'peft.variant'")
    if variant != "lora":
        found[f"use_{variant}"] = True
    if start in (True, "true", "kaiming"):
        return found
    if start is not False and start not in STARTS:
        raise unknown_name("start", str(start), STARTS, where=f"{reading.where}: 'peft.init_lora_weights'")
    return {**found, "init_lora_weights": start}


# ------------------------------------------------------------------------------------------------------- training


def _optim(reading: Reading) -> dict[str, Any]:
    training = reading.file.training
    name, schedule = training.optim, training.lr_scheduler_type
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS, where=f"{reading.where}: 'training.optim'")
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES, where=f"{reading.where}: 'training.lr_scheduler_type'")
    if "4bit" in name and "optim.optimizer" not in reading.overrides:
        reading.notes.append(f"training.optim: {name}: the optimizer's own state is kept in full precision")
    decays = bool(reading.overrides.get("optim.weight_decay", training.weight_decay))
    return {
        "optimizer": OPTIMIZERS[name],
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        **({"decay_exempt": "bias_and_norm"} if decays else {}),  # as the library's Trainer, which these files are for
        "lr_scheduler_type": SCHEDULES[schedule],
        "warmup_steps": 0 if schedule == "constant" else training.warmup_ratio,
        "max_grad_norm": training.max_grad_norm,
    }


def _batch(reading: Reading) -> dict[str, Any]:
    training, accelerate = reading.file.training, reading.file.accelerate
    rows, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    if training.global_batch_size is not None:
        accumulation = _accumulation(reading, training.global_batch_size)
    elif accelerate is not None and "training.gradient_accumulation_steps" not in reading.given:
        accumulation = accelerate.gradient_accumulation_steps
    return {
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": training.per_device_eval_batch_size,
        "gradient_accumulation_steps": accumulation,
        "order": "shuffled",
    }


def _accumulation(reading: Reading, rows_per_step: int) -> int:
    """Forward passes per step: the global batch over what all processes take at once, as the command line has them."""
    rows = _overridden(reading, "batch.per_device_train_batch_size", reading.file.training.per_device_train_batch_size)
    processes = _overridden(reading, "launch.num_processes", 1)
    if rows_per_step % (rows * processes):
        raise reading.error(
            "training.global_batch_size",
            f"= {rows_per_step} is no multiple of {rows} (per_device_train_batch_size) x {processes} (processes)",
            "change one of the three, so that it divides",
        )
    return rows_per_step // (rows * processes)


def _overridden(reading: Reading, setting: str, value: int) -> int:
    said = reading.overrides.get(setting)
    return said if isinstance(said, int) and said > 0 else value  # anything else is refused where it is put in place


def _train(reading: Reading, *, validates: bool) -> dict[str, Any]:
    training = reading.file.training
    train = {"num_train_epochs": training.num_train_epochs, "mixed_precision": _precision(reading)}
    validates = validates and reading.is_graded and reading.validates
    if not reading.is_graded:
        train["evaluate"] = "none"
        reading.notes.append(
            f"no grader is known for the answers of '{reading.file.task_name}': it is trained, not scored "
            "(train.evaluate=all scores it as numbers)"
        )
    if not validates:
        train["eval_strategy"] = "no"
    elif training.eval_strategy == "epoch":
        train["eval_strategy"] = "epoch"
    elif training.total_eval_times is not None:
        train["total_eval_times"] = training.total_eval_times
    elif reading.eval_steps is not None:
        train["eval_steps"] = reading.eval_steps
    _note_unwritten(reading)
    return train | (_best(reading, validates=validates) if reading.keeps_best else {})


def _note_unwritten(reading: Reading) -> None:
    """What becomes of validation where the file names rows for it, but not its steps."""
    training = reading.file.training
    if reading.file.dataset.eval_split is None or not reading.is_graded or training.eval_strategy != "steps":
        return
    if not reading.validates:
        reading.notes.append(
            f"no training.eval_steps: not validated on the way, as the usual {training.eval_steps} steps may be more "
            "than there are; to have it: train.eval_steps=... or train.total_eval_times=..."
        )
    elif reading.eval_steps is not None and reading.eval_steps < training.eval_steps:
        reading.notes.append(f"no training.eval_steps: validated after the last of {reading.eval_steps} steps")


def _precision(reading: Reading) -> str:
    training, accelerate = reading.file.training, reading.file.accelerate
    if training.fp16 and training.bf16:
        raise reading.error("training.fp16", "and 'training.bf16' are both true", "choose one")
    precision = "bf16" if training.bf16 else "fp16" if training.fp16 else "no"
    if accelerate is None or accelerate.mixed_precision in ("no", precision):
        return precision
    if precision == "no":
        return accelerate.mixed_precision
    reading.notes.append(f"accelerate.mixed_precision: training.{precision} stands")
    return precision


def _best(reading: Reading, *, validates: bool) -> dict[str, Any]:
    training = reading.file.training
    key = "training.load_best_model_at_end"
    if not reading.is_graded:
        says = f"needs a score, and no grader is known for the answers of '{reading.file.task_name}'"
        raise reading.error(key, says, "set it to false, or name the task after what its answers are: ..._gsm8k")
    if not validates:
        fix = "set it to false, or give dataset.eval_split and training.eval_strategy"
        raise reading.error(key, "needs validation rows that are scored on the way", fix)
    name = metric_named(reading)
    if name == "loss":
        reading.notes.append(
            "training.metric_for_best_model: loss: the task's own metric decides which weights are best"
        )
        return {"load_best_model_at_end": True}
    if not training.greater_is_better and name != "mse":
        reading.notes.append(f"training.greater_is_better: of {name} the higher is better, whatever the file says")
    return {"load_best_model_at_end": True, "metric_for_best_model": name}


# ---------------------------------------------------------------------------------------------- data and what is kept


def _data(reading: Reading) -> dict[str, Any]:
    dataset, sft = reading.file.dataset, reading.file.sft
    data: dict[str, Any] = {"data_seed": reading.file.training.data_seed}
    if sft is not None and sft.packing:
        raise reading.error("sft.packing", "= true: rows are not packed into one here", "set it to false")
    if reading.classifies:
        return {**data, "max_length": dataset.max_length or 512}
    length = dataset.max_length or 2048
    if sft is not None and ("sft.max_seq_length" in reading.given or dataset.max_length is None):
        length = sft.max_seq_length
        if dataset.max_length not in (None, length):
            reading.notes.append(f"sft.max_seq_length: {length} stands, not dataset.max_length: {dataset.max_length}")
    if reading.converses:
        plain = {"chat_template": False} if dataset.prompt_template is not None else {}
        return {**data, "max_length": length, **plain}
    reading.notes.append(
        "the loss is taken on the whole text (on the answer alone: data.loss_mask=answer), and each row ends in an "
        "end-of-sequence token, without which a model does not learn to stop"
    )
    return {**data, "max_length": length, "loss_mask": "everything"}


def _save(reading: Reading) -> dict[str, Any]:
    training = reading.file.training
    save: dict[str, Any] = {
        "save_strategy": training.save_strategy,
        "save_steps": training.save_steps,
        "output_dir": training.output_dir,
    }
    if training.save_total_limit is not None:
        return {**save, "save_total_limit": training.save_total_limit}
    reading.notes.append("training.save_total_limit: null: the newest checkpoints are kept, not all")
    return save


def _track(reading: Reading) -> dict[str, Any]:
    if "training.report_to" not in reading.given:
        reading.notes.append("no training.report_to: no tracker is told; the usual one: track.report_to=tensorboard")
        return {}
    named = reading.file.training.report_to
    return {"report_to": [name for name in ([named] if isinstance(named, str) else named) if name != "none"]}


PLUGIN = Dialect(recognises=recognises, to_native=to_native)
