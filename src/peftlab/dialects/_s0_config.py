"""The parameters of peft's method_comparison benchmark, written back from a run's settings: what `s0.py` reads.

A setting that the benchmark cannot express is an error that names the field and the value.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from typing import Any

from peftlab.dialects._s0_record import Run

_QUANTISED = {"bnb-int8": "int8", "bnb-fp4": "int4"}
_WARMUP = 0.1


def train_config(run: Run) -> dict[str, Any]:
    """All keys of the benchmark's training parameters; the inverse of how `s0.py` reads them."""
    get = run.get
    return {
        "model_id": get("model.id"),
        "dtype": _dtype(run),
        "max_seq_length": get("data.max_length"),
        "batch_size": _batch_size(run),
        "batch_size_eval": get("batch.per_device_eval_batch_size"),
        "max_steps": _max_steps(run),
        "eval_steps": eval_steps(run),
        "compile": get("model.compile"),
        "use_gc": get("model.gradient_checkpointing"),
        "seed": run.spec["seed"],
        "grad_norm_clip": get("optim.max_grad_norm"),
        "optimizer_type": get("optim.optimizer"),
        "optimizer_kwargs": _optimizer_kwargs(run),
        "lr_scheduler": _scheduler(run),
        "use_amp": get("train.mixed_precision") != "no",
        "autocast_adapter_dtype": get("model.autocast_adapter_dtype"),
        "attn_implementation": get("model.attn_implementation"),
        "generation_kwargs": _generation_kwargs(run),
        "query_template": _query_template(run),
        "init_kv_cache_prefix": get("model.kv_prefix_text"),
    }


def _dtype(run: Run) -> str:
    method = run.get("quant.method")
    if method is None:
        return str(run.get("model.dtype"))
    extras = [name for name in ("quant.double_quant", "quant.compute_dtype") if run.get(name)]
    if method not in _QUANTISED or extras:
        what = ", ".join(f"{name} = {run.get(name)}" for name in ("quant.method", *extras))
        raise run.cannot("dtype", f"{what}: s0 knows int8, and int4 with the library's defaults", "leave this run out")
    return _QUANTISED[method]


def _batch_size(run: Run) -> int:
    """Rows of an optimizer step: the benchmark neither accumulates nor has several processes."""
    per_device, accumulated = run.get("batch.per_device_train_batch_size"), run.get("batch.gradient_accumulation_steps")
    return int(per_device * (accumulated or 1) * (run.get("launch.num_processes") or 1))


def _max_steps(run: Run) -> int:
    """The budget in steps; a budget in rows, tokens or passes came to as many as were made."""
    declared = run.get("train.max_steps")
    if declared is None and run.record["training"].get("stopped_early") is None:
        declared = run.record["training"].get("last_step")
    steps: int = run.needed("max_steps", declared)
    return steps


def eval_steps(run: Run) -> int | None:
    """Steps between validations; None: there were none."""
    declared: int | None = run.get("train.eval_steps")
    steps = [found["checkpoint"] for found in validations(run)]
    if declared is not None or not steps:
        return declared
    if any(step != (number + 1) * steps[0] for number, step in enumerate(steps)):
        raise run.cannot("eval_steps", f"the validations at steps {steps} are not evenly spaced", "leave this run out")
    return int(steps[0])


def _optimizer_kwargs(run: Run) -> dict[str, Any]:
    name, decay = run.get("optim.optimizer"), run.get("optim.weight_decay")
    rest = dict(run.get("optim.optimizer_kwargs") or {})
    decay_name = "loraplus_weight_decay" if name == "lora+" else "weight_decay"
    kept = {} if name == "Rprop" or decay_name in rest else {decay_name: decay}
    return {"lr": run.get("optim.learning_rate"), **kept, **rest}


def warms_up_longer(run: Run) -> bool:
    """Whether the warm-up is a step longer than S0's: a share of the steps is rounded up here, and down there."""
    steps = _WARMUP * _max_steps(run)
    return run.get("optim.warmup_steps") == _WARMUP and math.ceil(steps) > int(steps)


def _scheduler(run: Run) -> str | None:
    kind, warmup = run.get("optim.lr_scheduler_type"), run.get("optim.warmup_steps")
    fix = "s0 knows cosine after a warm-up of a tenth of the steps, and null without one"
    if kind not in ("cosine", "constant"):
        raise run.cannot("lr_scheduler", f"optim.lr_scheduler_type = {kind}", fix)
    wanted = (_WARMUP, int(_WARMUP * _max_steps(run))) if kind == "cosine" else (0,)
    if warmup not in wanted:
        raise run.cannot("lr_scheduler", f"optim.warmup_steps = {warmup} with {kind}", fix)
    return kind if kind == "cosine" else None


def _generation_kwargs(run: Run) -> dict[str, Any]:
    for name, plain in (("few_shot", 0), ("chat_template", False), ("engine", "hf")):
        value = run.get(f"generation.{name}")
        if value not in (None, plain):
            raise run.cannot(
                "generation_kwargs", f"generation.{name} = {value} has no place in it", "leave this run out"
            )
    kept = {name: run.get(f"generation.{name}") for name in ("max_length", "max_new_tokens")}
    if run.get("generation.do_sample"):
        kept |= {name: run.get(f"generation.{name}") for name in ("do_sample", "temperature", "top_p", "top_k")}
    if run.get("generation.num_beams") not in (None, 1):
        kept["num_beams"] = run.get("generation.num_beams")
    return kept


def _query_template(run: Run) -> str:
    """The prompt with its one column named `query`."""
    prompt = run.spec["task"]["prompt"]
    pieces, fields = [], set()
    for literal, name, _, _ in string.Formatter().parse(prompt):
        pieces.append(literal.replace("{", "{{").replace("}", "}}"))
        if name is not None:
            fields.add(name)
            pieces.append("{query}")
    if len(fields) != 1:
        shown = ", ".join(sorted(fields))
        raise run.cannot("query_template", f"the prompt shows {len(fields)} columns ({shown})", "s0 shows one column")
    return "".join(pieces)


def validations(run: Run) -> list[Mapping[str, Any]]:
    """The evaluations on validation rows along the way, by step; of several of one step that of the run's settings."""
    own = run.spec.get("generation")
    found = run.scored("valid", "step")
    found.sort(key=lambda one: (int(one["checkpoint"]), (one.get("settings") or {}).get("generation") == own))
    return list({one["checkpoint"]: one for one in found}.values())
