"""Results of peft's method_comparison benchmark read as records, of every age: `cuda_*` and flat facts included.

Only the scores come along, no outcomes per item: such a run can be set beside others, never paired with them. Nothing
is filled in that a file does not say; what it says with a sentinel is unknown here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from peftlab.config.groups import GenerationSettings
from peftlab.digest import digest
from peftlab.errors import UserError

NAME = "s0"
TASK, SCORE = "metamath_gsm8k", "exact_match_s0"
OWN_SECTION = "peftlab_info"
TEST_ITEMS = 1319
"""Rows of the test; older files were scored on fewer, which shows: their accuracy is no multiple of 1/1319."""

UNSAVED_BYTES = 99_999_999
"""What the benchmark writes for the size of an adapter that could not be saved."""

FORGETTING_SINCE = "2026-07"
_CANCELLED = ("", "manually canceled")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")
_BOOKKEEPING = ("peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode")
_MISSING = object()


@dataclass(frozen=True)
class _Section:
    """A part of the file; its readers name the field of whatever is not as it should be."""

    data: Mapping[str, Any]
    where: str
    name: str

    def wrong(self, key: str, reason: str) -> UserError:
        """The error of a field."""
        place = f"{self.name}.{key}" if self.name else key
        return UserError(
            f"{self.where}: '{place}' {reason}", fix="is this a result of dialect s0, whole as it was written?"
        )

    def get(self, key: str, kind: type | tuple[type, ...], what: str, default: Any = _MISSING) -> Any:
        """The value of a key, of that kind; `default` where it is absent or null."""
        value = self.data.get(key)
        if value is None and default is not _MISSING:
            return default
        if key not in self.data:
            raise self.wrong(key, "is missing")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(key, f"= {str(value)[:60]!r} is no {what}")
        return value

    def section(self, key: str, default: Any = _MISSING) -> _Section:
        """An object within."""
        found = self.get(key, dict, "object", default)
        return _Section(found, self.where, f"{self.name}.{key}" if self.name else key)

    def text(self, key: str, default: Any = _MISSING) -> Any:
        """A string."""
        return self.get(key, str, "text", default)

    def number(self, key: str, default: Any = _MISSING, *, most: float = math.inf, least: float = 0) -> Any:
        """A number between two bounds."""
        value = self.get(key, (int, float), "number", default)
        if isinstance(value, int | float) and not least <= value <= most:
            raise self.wrong(key, f"= {value} is not between {least} and {most}")
        return value

    def count(self, key: str, default: Any = _MISSING, *, least: float = 0) -> Any:
        """A whole number."""
        self.get(key, int, "whole number", default)
        return self.number(key, default, least=least)


def import_result(result: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A result of the benchmark as a record, in plain data; its key is the digest of the content.

    Raises:
        UserError: The file is damaged or something else; names the field.
    """
    whole = _Section(result, where, "")
    run, train, meta = (whole.section(name) for name in ("run_info", "train_info", "meta_info"))
    config = run.section("train_config")
    own = meta.section(OWN_SECTION, {})
    peft_config = run.get("peft_config", dict, "object", None)
    if "peft_config" not in run.data:
        raise run.wrong("peft_config", "is missing")
    if peft_config is not None:
        _peft_type(run.section("peft_config"))
    rows = _metrics(train)
    key, status = digest(result), own.text("status", None) or _status(run, train)
    test, validations = _test(train, rows, status, own), _validations(rows)
    told = {"task": own.text("task", TASK), "grader": {"name": "numeric", "modes": ["s0"], "version": None}}
    told |= {"key": key, "settings": _settings(config), "metric": test["metric"]}
    evaluations = [_evaluation(told, part="valid", role="step", score=one) for one in validations]
    if status == "finished":
        evaluations.append(_evaluation(told, part="test", role="last", score=test))
    arm = {name: value for name, value in config.data.items() if name != "seed"}
    adapter = {name: value for name, value in (peft_config or {}).items() if name not in _BOOKKEEPING}
    return {
        "version": 1,
        "status": status,
        "category": own.text("category", "main" if run.text("peft_branch", None) == "main" else "test"),
        "key": key,
        "arm": digest({"imported_from": NAME, "task": told["task"], "train_config": arm, "peft_config": adapter}),
        "experiment": _experiment(run),
        "method": str((peft_config or {}).get("peft_type", "full")).lower(),
        "task": told["task"],
        "seed": config.count("seed", 0),
        "created_at": _created_at(run),
        "identity": {"imported_from": NAME, "content": key},
        "spec": _spec(config, peft_config, told["task"]),
        "evaluations": evaluations,
        "before_reason": "the benchmark does not score the starting model",
        "curve": {"step": [row["step"] for row in validations], "loss": [row["loss"] for row in validations]},
        "training": _training(run, rows, own),
        "cost": _cost(run, train, rows),
        "provenance": _provenance(run, meta, own),
        "error": run.text("error_msg", "") or None,
    }


# ------------------------------------------------------------------------------------------------------- run_info


def _experiment(run: _Section) -> str:
    name: str = run.text("experiment_name")
    parts = name.split("/")
    if len(parts) != 2 or not all(_SAFE_NAME.fullmatch(part) for part in parts):
        raise run.wrong("experiment_name", f"= {name[:80]!r} is no <method>/<name>")
    return name


def _peft_type(adapter: _Section) -> None:
    name = adapter.text("peft_type")
    if not _SAFE_NAME.fullmatch(name):
        raise adapter.wrong("peft_type", f"= {name[:60]!r} is no name of a method")


def _created_at(run: _Section) -> str:
    text: str = run.text("created_at")
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise run.wrong("created_at", f"= {text[:60]!r} is no date and time") from None
    return text


def _status(run: _Section, train: _Section) -> str:
    """The benchmark calls every ending but success `canceled`; its message tells them apart."""
    status, message = train.text("status"), run.text("error_msg", "")
    if status == "success":
        return "finished"
    if status not in ("canceled", "failed"):
        raise train.wrong("status", f"= {status[:60]!r} is none of success, canceled, failed")
    if "out of memory" in message.lower() or message.startswith("OutOfMemoryError"):
        return "out_of_memory"
    return "cancelled" if status == "canceled" and message in _CANCELLED else "failed"


def _spec(config: _Section, adapter: Mapping[str, Any] | None, task: str) -> dict[str, Any]:
    """The parameters under our names, as far as the file has them."""
    optimizer = config.section("optimizer_kwargs", {})
    kwargs = {name: value for name, value in optimizer.data.items() if name not in ("lr", "weight_decay")}
    named = {
        "model": {
            "id": config.text("model_id"),
            "dtype": config.text("dtype", None),
            "attn_implementation": config.text("attn_implementation", None),
            "autocast_adapter_dtype": config.get("autocast_adapter_dtype", bool, "truth value", None),
            "gradient_checkpointing": config.get("use_gc", bool, "truth value", None),
            "compile": config.get("compile", bool, "truth value", None),
        },
        "optim": {
            "optimizer": config.text("optimizer_type", None),
            "learning_rate": optimizer.number("lr", None),
            "weight_decay": optimizer.number("weight_decay", None),
            "optimizer_kwargs": kwargs or None,
            "lr_scheduler_type": config.text("lr_scheduler", "constant"),
            "max_grad_norm": config.number("grad_norm_clip", None),
        },
        "batch": {
            "per_device_train_batch_size": config.count("batch_size", None, least=1),
            "per_device_eval_batch_size": config.count("batch_size_eval", None, least=1),
        },
        "train": {"max_steps": config.count("max_steps", None), "eval_steps": config.count("eval_steps", None)},
        "generation": dict(config.get("generation_kwargs", dict, "object", {})),
        "data": {
            "max_length": config.count("max_seq_length", None),
            "prompt": config.text("query_template", None),
        },
    }
    groups = {name: {key: value for key, value in group.items() if value is not None} for name, group in named.items()}
    return {"seed": config.count("seed", 0), "task": {"name": task}, "adapter": adapter, **groups}


def _settings(config: _Section) -> dict[str, Any]:
    """What an evaluation was made under: the benchmark's greedy decoding with the limits of the file."""
    given = config.get("generation_kwargs", dict, "object", {})
    plain = {**GenerationSettings().model_dump(mode="json"), "max_new_tokens": None, "limits": "batch"}
    return {"model": {"id": config.text("model_id")}, "generation": {**plain, **given}}


# ------------------------------------------------------------------------------------------------------ train_info


def _metrics(train: _Section) -> list[_Section]:
    found: Sequence[Any] = train.get("metrics", list, "list")
    for number, row in enumerate(found):
        if not isinstance(row, dict):
            raise train.wrong(f"metrics[{number}]", "is no object")
    return [_Section(row, train.where, f"train_info.metrics[{number}]") for number, row in enumerate(found)]


def _test(train: _Section, rows: Sequence[_Section], status: str, own: _Section) -> dict[str, Any]:
    """The scores of the last row, which a finished run must have."""
    scored = own.section("scored", {})
    metric = scored.text("metric", SCORE)
    if status != "finished":
        return {"metric": metric}
    if not rows:
        raise train.wrong("metrics", "is empty, so there is no test accuracy")
    last = rows[-1]
    accuracy = float(last.number("test accuracy", most=1))
    items = scored.count("num_items", None, least=1) or (TEST_ITEMS if not own.data else None)
    return {"metric": metric, "step": last.count("step"), "mean": accuracy, "n": _items(accuracy, items)}


def _validations(rows: Sequence[_Section]) -> list[dict[str, Any]]:
    return [
        {
            "step": row.count("step"),
            "mean": float(row.number("valid accuracy", most=1)),
            "n": None,
            "loss": row.number("train loss", None),
        }
        for row in rows
        if "valid accuracy" in row.data
    ]


def _items(accuracy: float, items: int | None) -> int | None:
    """`items` when the accuracy can be a share of so many, else None."""
    right = accuracy * (items or 0)
    return items if items and abs(right - round(right)) < 1e-6 * items else None


def _evaluation(told: Mapping[str, Any], *, part: str, role: str, score: Mapping[str, Any]) -> dict[str, Any]:
    """A score without outcomes; the standard error is that of a share of right answers, s / sqrt(n)."""
    mean, n = score["mean"], score["n"]
    error = math.sqrt(mean * (1 - mean) / (n - 1)) if n and n > 1 and 0 < mean < 1 else None
    metric = {"mean": mean, "standard_error": error, "n": n, "direction": "higher"}
    return {
        "key": digest({"imported": told["key"], "part": part, "step": score["step"]}),
        "what": "task",
        "task": told["task"],
        "part": part,
        "checkpoint": score["step"],
        "role": role,
        "metrics": {told["metric"]: metric},
        "num_items": n,
        "grader": told["grader"],
        "settings": told["settings"],
    }


def _training(run: _Section, rows: Sequence[_Section], own: _Section) -> dict[str, Any]:
    last = rows[-1] if rows else None
    steps = last.count("step", None) if last else None
    change = last.number("forgetting", None, least=-math.inf) if last else None
    reason = None if change is not None else "the file does not say it"
    if change is not None and not own.data and run.text("created_at") < FORGETTING_SINCE:
        reason = f"the file says {change}, but before July 2026 the benchmark measured it wrongly"
        change = None
    return {
        "step": steps,
        "role": "last",
        "last_step": steps,
        "samples": last.count("train samples", None) if last else None,
        "final_loss": None,  # of the last step; the file has means
        "mean_loss": last.number("train loss", None) if last else None,
        "forgetting": {"text": "finewiki", "change": change, "reason": reason},
    }


def _cost(run: _Section, train: _Section, rows: Sequence[_Section]) -> dict[str, Any]:
    """Seconds by kind where the rows tell them all; bytes are above the level before the run."""
    train.number("train_time", None)  # not kept: the benchmark counts tokenising and the test in it
    total, between = run.number("total_time", None), [row for row in rows if "valid accuracy" in row.data]
    kinds = {"train": "train time", "validation": "eval time"}
    sums = {kind: [row.number(name, None) for row in between] for kind, name in kinds.items()}
    seconds = {kind: float(sum(found)) for kind, found in sums.items() if found and None not in found}
    unknown = _unknown_times(rows, between, seconds)
    for kind in unknown:
        seconds.pop(kind, None)
    if total is not None:
        seconds["other"] = max(0.0, float(total) - sum(seconds.values()))
    age = "accelerator" if any(name.startswith("accelerator_") for name in train.data) else "cuda"
    names = {"average": "memory_reserved_avg", "percentile_99": "memory_reserved_99th", "maximum": "memory_max"}
    memory = {ours: train.number(f"{age}_{name}", None, least=-math.inf) for ours, name in names.items()}
    memory["before_model"] = 0  # these bytes are counted from there
    size = train.count("file_size", None)
    unknown["train_loss"] = "the file has means over the steps since a validation, not the loss of the last step"
    if size == UNSAVED_BYTES:
        unknown["adapter_bytes"] = f"the file says {UNSAVED_BYTES}, which stands for an adapter that was not saved"
    return {
        "seconds": seconds,
        "train_tokens": rows[-1].count("train total tokens", None) if rows else None,
        "memory_bytes": memory if None not in memory.values() else None,
        "memory_kind": "reserved bytes above the level before the model was loaded",
        "num_trainable_parameters": train.count("num_trainable_params", None),
        "num_parameters": train.count("num_total_params", None),
        "adapter_bytes": None if size == UNSAVED_BYTES else size,
        "unknown": unknown,
    }


def _unknown_times(
    rows: Sequence[_Section], between: Sequence[_Section], seconds: Mapping[str, float]
) -> dict[str, str]:
    """Times of steps are in the rows of validations: those of the steps after the last validation are nowhere."""
    if "train" not in seconds:
        return {"train": "the file has no times of steps"}
    if "test accuracy" in rows[-1].data and rows[-1].count("step") == between[-1].count("step"):
        return {}
    return {"train": f"the file has no times of the steps after the validation at step {between[-1].count('step')}"}


# ------------------------------------------------------------------------------------------------------- meta_info


def _provenance(run: _Section, meta: _Section, own: _Section) -> dict[str, Any]:
    packages, system = meta.section("package_info", {}).data, dict(meta.section("system_info", {}).data)
    sha = meta.section("model_info", {}).text("sha", None) or meta.text("model_sha", None)
    data = meta.section("dataset_info", {}).data or {"metamath": {"sha": meta.text("dataset_sha", None)}}
    return {
        "imported_from": NAME,
        "exported_key": own.text("key", None),
        "versions": _suffixed(packages, "-version"),
        "commits": _suffixed(packages, "-commit-hash"),
        "accelerator": system.pop("accelerator", None) or system.pop("gpu", None),
        "processor": system.pop("processor", None),
        "system": system,
        "git": {"branch": run.text("peft_branch", None), "of": "peft"},
        "model": {"revision": sha},
        "data": dict(data),
        "torch_build": meta.text("pytorch_info", None),
    }


def _suffixed(packages: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    return {name.removesuffix(suffix): value for name, value in packages.items() if name.endswith(suffix)}
