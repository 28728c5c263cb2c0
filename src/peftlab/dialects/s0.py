"""Experiments of peft's method_comparison benchmark: flat parameters over shared defaults, put into our own words.

Reads what the benchmark reads and means by it what the benchmark means, its known mistakes left out (a tail of rows
seen twice, a seed that changes nothing). Which settings exist, and what they do, is decided elsewhere.
"""

from __future__ import annotations

import os
import string
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from peftlab.config.groups import BUDGETS, GROUPS
from peftlab.config.settings import Settings, read_json, validated
from peftlab.dialects import _s0_import, _s0_results
from peftlab.errors import UserError, unknown_name
from peftlab.foreign import Dialect, Foreign, Native

DEFAULTS_FILE = "default_training_params.json"
EXPERIMENTS = "experiments"
TASK = "metamath_gsm8k"
QUERY_COLUMN = "question"
"""Our column for what the benchmark's templates call `query`."""

NEUTRAL = ("task", "seed")
"""Keys that are written alike in both styles, and so say nothing about which one it is."""

TORCH_OPTIMIZERS: Mapping[str, tuple[float | None, float | None]] = {
    "ASGD": (0.01, 0.0),
    "Adadelta": (1.0, 0.0),
    "Adafactor": (0.01, 0.0),
    "Adagrad": (0.01, 0.0),
    "Adam": (0.001, 0.0),
    "AdamW": (0.001, 0.01),
    "Adamax": (0.002, 0.0),
    "Muon": (0.001, 0.1),
    "NAdam": (0.002, 0.0),
    "RAdam": (0.001, 0.0),
    "RMSprop": (0.01, 0.0),
    "Rprop": (0.01, None),
    "SGD": (0.001, 0.0),
}
"""Rate and weight decay that torch.optim's classes take when they are not named; None: it has none."""

PEFT_OPTIMIZERS: Mapping[str, tuple[float | None, float | None]] = {
    "lora+": (None, 0.0),
    "lora-fa": (None, 0.0),
    "riemannian": (None, 0.01),
}
"""The same of peft's own; a rate must be named. `lora+` has its decay under a name of its own."""

_OPTIMIZERS = {**TORCH_OPTIMIZERS, **PEFT_OPTIMIZERS}
_PLUS_DECAY = "loraplus_weight_decay"
_QUANTISED = {"int8": "bnb-int8", "int4": "bnb-fp4"}
_LIMITS = ("max_length", "max_new_tokens")
_GENERATION = (*_LIMITS, "do_sample", "temperature", "top_p", "top_k", "num_beams")


class Flat(Settings):
    """The benchmark's parameters with its defaults and checks; each description is the setting's name here."""

    model_id: str = Field("meta-llama/Llama-3.2-3B", description="model.id")
    dtype: Literal["float32", "float16", "bfloat16", "int8", "int4"] = Field("bfloat16", description="model.dtype")
    max_seq_length: int = Field(768, description="data.max_length", gt=1)
    batch_size: int = Field(4, description="batch.per_device_train_batch_size", gt=0)
    batch_size_eval: int = Field(50, description="batch.per_device_eval_batch_size", gt=0)
    max_steps: int = Field(5000, description="train.max_steps", gt=0)
    eval_steps: int = Field(250, description="train.eval_steps", gt=0)
    compile: bool = Field(False, description="model.compile")
    use_gc: bool = Field(False, description="model.gradient_checkpointing")
    seed: int = Field(0, description="seed", ge=0)
    grad_norm_clip: float = Field(1.0, description="optim.max_grad_norm", ge=0)
    optimizer_type: str = Field("AdamW", description="optim.optimizer")
    optimizer_kwargs: dict[str, Any] = Field({"lr": 1e-4, "weight_decay": 0.1}, description="optim.optimizer_kwargs")
    lr_scheduler: Literal["cosine"] | None = Field("cosine", description="optim.lr_scheduler_type")
    use_amp: bool = Field(False, description="train.mixed_precision")
    autocast_adapter_dtype: bool = Field(True, description="model.autocast_adapter_dtype")
    attn_implementation: str | None = Field(None, description="model.attn_implementation")
    generation_kwargs: dict[str, Any] = Field(
        {"max_length": 800, "max_new_tokens": 300}, description="generation.max_new_tokens"
    )
    query_template: str = Field("Question: {query} Think step by step.\nAnswer:", description="data.prompt")
    init_kv_cache_prefix: str | None = Field(None, description="model.kv_prefix_text")

    @field_validator("optimizer_kwargs")
    @classmethod
    def _numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in ("lr", "weight_decay", _PLUS_DECAY):
            number = value.get(name, 1)
            if isinstance(number, bool) or not isinstance(number, int | float) or number < 0:
                raise ValueError(f"'{name}' must be a number of at least 0")
        if not value.get("lr", 1):
            raise ValueError("'lr' must be above 0")
        return value

    @field_validator("query_template")
    @classmethod
    def _asks(cls, value: str) -> str:
        names = {(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(value)}
        if {one for one in names if one[0] is not None} != {("query", "", None)}:
            raise ValueError("a template must contain {query} and no other field; write {{ and }} for braces")
        return value

    @model_validator(mode="after")
    def _validates_in_time(self) -> Flat:
        if self.eval_steps > self.max_steps:
            raise ValueError(f"eval_steps ({self.eval_steps}) is larger than max_steps ({self.max_steps})")
        return self


HOMES = {name: field.description or "" for name, field in Flat.model_fields.items()}
"""The benchmark's key: the setting that it becomes."""


# -------------------------------------------------------------------------------------------------- recognising


def recognises(found: Foreign) -> bool:
    """Whether a folder is written in this style: its own words decide; where it has none, the defaults above it do.

    Raises:
        UserError: Flat keys and groups of settings stand in one file.
    """
    if found.path.is_file():
        return False
    groups, flat = _styles(found)
    if groups or flat:
        return bool(flat)
    return _defaults_above(found.path) is not None


def _styles(found: Foreign) -> tuple[list[str], list[str]]:
    """The groups of settings and the flat keys in an experiment's own file; one of the two is empty."""
    keys = [key for key in found.parameters or {} if key not in NEUTRAL]
    groups, flat = [key for key in keys if key in GROUPS], [key for key in keys if key in HOMES]
    if groups and flat:
        raise UserError(
            f"{found.where}: unknown key {_listed(flat)} beside {_listed(groups)}: flat keys (dialect s0) and groups "
            "of settings are two styles, and a file is written in one",
            fix=f"did you mean {_listed([HOMES[key] for key in flat])}? or write every key flat",
        )
    return groups, flat


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _defaults_above(folder: Path) -> Path | None:
    """The nearest file of shared defaults above an experiment, up to the folder that holds `experiments`."""
    place = folder.resolve()
    for below, above in pairwise((place, *place.parents)):
        if (above / DEFAULTS_FILE).is_file():
            return above / DEFAULTS_FILE
        if below.name == EXPERIMENTS:
            return None
    return None


# --------------------------------------------------------------------------------------------------- translating


def to_native(found: Foreign) -> Native:
    """The experiment in groups of settings; the file's keys replace those of the shared defaults whole.

    Raises:
        UserError: Unknown keys, wrong types, values out of range, or what has no counterpart here.
    """
    if found.path.is_file():
        raise UserError(f"{found.where}: dialect s0 is written as folders of JSON", fix="leave out --dialect s0")
    groups, _ = _styles(found)
    if groups:
        raise UserError(
            f"{found.where}: {_listed(groups)} are groups of settings, not keys of dialect s0",
            fix="leave out --dialect s0",
        )
    if found.adapter is not None and not isinstance(found.adapter.get("peft_type"), str):
        place = found.path / "adapter_config.json"
        raise UserError(f"{place}: 'peft_type' is required", fix='add for example "peft_type": "LORA"')
    source = _defaults_above(found.path)
    shared = read_json(source) if source is not None else {}
    merged = {**shared, **(found.parameters or {})}
    task = merged.pop("task", TASK)
    flat = _merged_flat(merged, shared, found.where, source)
    optim, notes = _optim(flat, found.where, _warmup(flat, found.overrides))
    parameters = {
        "task": task,
        "seed": flat.seed,
        "model": {
            "id": flat.model_id,
            "dtype": "bfloat16" if flat.dtype in _QUANTISED else flat.dtype,
            "attn_implementation": flat.attn_implementation,
            "autocast_adapter_dtype": flat.autocast_adapter_dtype,
            "gradient_checkpointing": flat.use_gc,
            "compile": flat.compile,
            "kv_prefix_text": flat.init_kv_cache_prefix,
        },
        "quant": {"method": _QUANTISED.get(flat.dtype)},
        "optim": optim,
        "batch": {
            "per_device_train_batch_size": flat.batch_size,
            "per_device_eval_batch_size": flat.batch_size_eval,
            "order": "bucketed-file",
            "eval_order": "file",
        },
        "train": {
            "max_steps": flat.max_steps,
            "eval_steps": flat.eval_steps,
            # the benchmark scales its losses and leaves the type to torch, which takes half precision on accelerators
            "mixed_precision": "fp16" if flat.use_amp else "no",
        },
        "generation": {**_generation(flat, found.where), "limits": "batch"},
        "data": {
            "max_length": flat.max_seq_length,
            "loss_mask": "everything",
            "forgetting": "finewiki",
            **_prompt(flat),
        },
    }
    told = _told(found.path, source, shared, flat)
    return Native(
        parameters=parameters, adapter=dict(found.adapter) if found.adapter is not None else None, notes=(*told, *notes)
    )


def _merged_flat(merged: Mapping[str, Any], shared: Mapping[str, Any], where: str, source: Path | None) -> Flat:
    """The parameters, checked as merged; a mistake is looked for in the shared file first, to name the right one."""
    try:
        return _flat(merged, where)
    except UserError:
        if source is not None:
            _flat({key: value for key, value in shared.items() if key != "task"}, str(source))
        raise


def _flat(given: Mapping[str, Any], where: str) -> Flat:
    flat = validated(Flat, given, where=where, fix=f"keys of dialect s0: {', '.join(HOMES)}")
    if flat.optimizer_type not in _OPTIMIZERS:
        raise unknown_name("optimizer_type", flat.optimizer_type, _OPTIMIZERS, where=where)
    return flat


def _warmup(flat: Flat, overrides: Mapping[str, Any]) -> int | float:
    """A tenth of the budget, also of one that the command line gives: whole steps rounded down, else the share."""
    if any(overrides.get(f"train.{name}") is not None for name in BUDGETS if name != "max_steps"):
        return 0.1
    steps = overrides.get("train.max_steps")
    return int(0.1 * (steps if isinstance(steps, int) else flat.max_steps))


def _optim(flat: Flat, where: str, warmup: int | float) -> tuple[dict[str, Any], list[str]]:
    """The optimizer with every number written out that the benchmark leaves to a library's default."""
    name, rest = flat.optimizer_type, dict(flat.optimizer_kwargs)
    own_rate, own_decay = _OPTIMIZERS[name]
    notes = []
    if name == "lora+" and rest.pop("weight_decay", 0):
        notes.append(f"optimizer_kwargs: weight_decay has no effect on lora+; its decay is {_PLUS_DECAY}")
    if "lr" not in rest:
        if own_rate is None or flat.lr_scheduler is None:
            raise UserError(f"{where}: 'optimizer_kwargs' names no 'lr'", fix='add for example "lr": 1e-4')
        notes.append(f"optimizer_kwargs without lr: {name}'s own {own_rate} stands")
    decay_name = _PLUS_DECAY if name == "lora+" else "weight_decay"
    if own_decay is None and rest.pop(decay_name, 0):
        raise UserError(f"{where}: 'optimizer_kwargs': {name} has no weight_decay", fix="remove it")
    if own_decay and decay_name not in rest:
        notes.append(f"optimizer_kwargs without weight_decay: {name}'s own {own_decay} stands, not the defaults' value")
    optim = {
        "optimizer": name,
        "learning_rate": rest.pop("lr", own_rate),
        "weight_decay": rest.pop(decay_name, own_decay or 0.0),
        "optimizer_kwargs": rest,
        "lr_scheduler_type": flat.lr_scheduler or "constant",
        "warmup_steps": warmup if flat.lr_scheduler else 0,
        "max_grad_norm": flat.grad_norm_clip,
    }
    return optim, notes


def _generation(flat: Flat, where: str) -> dict[str, Any]:
    given = {name: value for name, value in flat.generation_kwargs.items() if value is not None}
    for name in given:
        if name not in _GENERATION:
            raise unknown_name("setting in 'generation_kwargs'", name, _GENERATION, where=where)
    if not any(name in given for name in _LIMITS):
        raise UserError(
            f"{where}: 'generation_kwargs' names neither max_length nor max_new_tokens",
            fix='add for example "max_new_tokens": 300',
        )
    return {"max_new_tokens": given.get("max_length"), **given}


def _prompt(flat: Flat) -> dict[str, Any]:
    """The template where it is not the one that the task has anyway; so another task keeps its own."""
    if flat.query_template == Flat.model_fields["query_template"].default:
        return {}
    return {"prompt": flat.query_template.replace("{query}", f"{{{QUERY_COLUMN}}}")}


def _told(folder: Path, source: Path | None, shared: Mapping[str, Any], flat: Flat) -> list[str]:
    """What a reader of the run should know of the translation."""
    origin = os.path.relpath(source, folder.resolve()) if source is not None else "its documentation"
    notes = [f"read as dialect s0, defaults from {origin}"]
    missing = [name for name in HOMES if name not in shared] if source is not None else []
    if missing:
        notes.append(f"{DEFAULTS_FILE} has no {', '.join(missing)}: the documented defaults stand")
    if flat.dtype in _QUANTISED:
        notes.append(f"dtype {flat.dtype}: what is not quantised stays in bfloat16")
    if flat.use_amp:
        notes.append("use_amp: float16 with a scaled loss")
    return notes


PLUGIN = Dialect(
    recognises=recognises,
    to_native=to_native,
    shared_files=(DEFAULTS_FILE,),
    export_result=_s0_results.export_result,
    result_path=_s0_results.result_path,
    import_result=_s0_import.import_result,
)
