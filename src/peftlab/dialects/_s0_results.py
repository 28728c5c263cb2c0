"""Records written as results of peft's method_comparison benchmark: its three sections, its names, its units.

Plain data in, plain data out. A field whose value the benchmark cannot express, or the record does not hold, is an
error that names the field; null stands only where the benchmark's reader takes it, with the reason in
`meta_info.peftlab_info`, which also lists the settings that the benchmark has no field for. Reading its results is
`_s0_import.py`'s work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peftlab.dialects._s0_config import eval_steps, train_config, validations, warms_up_longer
from peftlab.dialects._s0_record import Run, gathered

OWN_SECTION = "peftlab_info"
STATUSES: Mapping[str, str] = {
    "finished": "success",
    "cancelled": "canceled",
    "killed": "canceled",
    "failed": "failed",
    "out_of_memory": "failed",
}
PACKAGES = ("transformers", "peft", "datasets", "bitsandbytes", "torch")
SCORE = "exact_match_s0"
"""The accuracy under the benchmark's own parser; the task's primary metric stands in where a run has none."""

PROTOCOL: Mapping[str, Any] = {
    "batch.order": "bucketed-file",
    "batch.bucket_batches": 20,
    "batch.eval_order": "file",
    "batch.gradient_accumulation_steps": 1,
    "data.loss_mask": "everything",
    "data.eos_weight": 1.0,
    "data.train_rows": None,
    "data.valid_rows": None,
    "data.test_rows": None,
    "generation.limits": "batch",
    "generation.stop": [],
    "model.revision": None,
    "optim.decay_exempt": "none",
    "train.early_stopping_patience": None,
    "launch.num_processes": 1,
}
"""What every run of the benchmark has, without a field for it; what differs is listed in the exported file."""

_HUB_DATA = {"metamath": ("train", "meta-math/MetaMathQA"), "gsm8k": ("test", "openai/gsm8k")}


def export_result(record: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """A record as the benchmark would have written it.

    Args:
        record: A record as plain data.
        facts: `curve`: every row of the step log; `state`: what the run's folder holds of an unfinished run.

    Raises:
        UserError: A field that cannot be filled, named with its value.
    """
    run = gathered(record, facts)
    kind = (run.spec.get("task") or {}).get("kind")
    if kind != "generate":
        raise run.cannot("test accuracy", f"the task's kind is '{kind}'", "s0 has results of generated answers only")
    unknown: dict[str, str] = {}
    sections = {"run_info": _run_info(run, unknown), "train_info": _train_info(run, unknown)}
    return {**sections, "meta_info": {**_meta_info(run, unknown), OWN_SECTION: _own_section(run, unknown)}}


def result_path(result: Mapping[str, Any]) -> str:
    """Folder and name of a result, as the benchmark files it; what it would drop lies with the cancelled."""
    info = result["run_info"]
    name = info["experiment_name"].replace("/", "--")
    dated = f"{name}--{info['created_at'].replace(':', '-')}"
    if result["train_info"]["status"] != "success":
        return f"cancelled_results/{dated}.json"
    if result["meta_info"][OWN_SECTION]["category"] != "main":
        return f"temporary_results/{dated}.json"
    return f"results/{name}.json"


# ------------------------------------------------------------------------------------------------------- sections


def _run_info(run: Run, unknown: dict[str, str]) -> dict[str, Any]:
    return {
        "created_at": run.record["created_at"],
        "total_time": sum(seconds for name, seconds in run.seconds.items() if name != "start"),
        "experiment_name": run.record["experiment"],
        "peft_branch": run.git.get("branch") or "unknown",
        "peft_worktree_is_dirty": _dirty(run, unknown),
        "train_config": train_config(run),
        "peft_config": _peft_config(run),
        "error_msg": run.record.get("error") or "",
    }


def _train_info(run: Run, unknown: dict[str, str]) -> dict[str, Any]:
    """Bytes are whole and above the level before the model was loaded; `train_time` is all but the validations."""
    level = run.needed("accelerator_memory_reserved_avg", run.memory.get("before_model"))
    size = run.record["cost"].get("adapter_bytes")
    if not run.finished:
        unknown["train_info.file_size"] = "the run did not finish, so nothing was saved"
    return {
        "accelerator_memory_reserved_avg": round(run.memory["average"] - level),
        "accelerator_memory_max": round(run.memory["maximum"] - level),
        "accelerator_memory_reserved_99th": round(run.memory["percentile_99"] - level),
        "train_time": sum(seconds for name, seconds in run.seconds.items() if name not in ("start", "validation")),
        "file_size": run.needed("file_size", size) if run.finished else size,
        "num_trainable_params": run.needed("num_trainable_params", run.counts.get("trainable")),
        "num_total_params": run.needed("num_total_params", run.counts.get("total")),
        "status": STATUSES[run.record["status"]],
        "metrics": [*_intervals(run), *_last_row(run)],
    }


def _meta_info(run: Run, unknown: dict[str, str]) -> dict[str, Any]:
    system = {**(run.environment.get("system") or {})}
    system |= {name: run.environment.get(name) for name in ("processor", "accelerator")}
    names = ("system", "release", "version", "machine", "processor", "accelerator")
    return {
        "model_info": _model_info(run, unknown),
        "dataset_info": {name: _data_info(run, name, unknown) for name in _HUB_DATA},
        "package_info": _packages(run),
        "system_info": {name: run.needed(f"system_info.{name}", system.get(name)) for name in names},
        "pytorch_info": run.needed("pytorch_info", run.environment.get("torch_build")),
    }


def _dirty(run: Run, unknown: dict[str, str]) -> bool | None:
    dirty: bool | None = run.git.get("dirty")
    if dirty is None:
        unknown["run_info.peft_worktree_is_dirty"] = "the experiment lies in no git work tree"
    return dirty


def _peft_config(run: Run) -> Mapping[str, Any] | None:
    if run.spec.get("adapter") is None:
        return None
    config: Mapping[str, Any] = run.needed("peft_config", run.adapter_config)
    return config


# -------------------------------------------------------------------------------------------------------- metrics


def _intervals(run: Run) -> Iterator[dict[str, Any]]:
    """A row per validation: the steps since the one before, and their costs."""
    start, elapsed = 0, 0.0
    for found in validations(run):
        step = int(found["checkpoint"])
        rows = [row for row in _curve(run) if start < row["step"] <= step]
        run.needed("train loss", rows or None)
        train_time, eval_time = sum(row["seconds"] for row in rows), run.needed("eval time", found["seconds"])
        elapsed += train_time + eval_time
        yield {
            "step": step,
            "valid accuracy": _accuracy(run, found, "valid accuracy"),
            "train loss": _mean_loss(run, rows),
            "train samples": _samples(run, rows[-1]),
            "train time": train_time,
            "eval time": eval_time,
            "tokens / sec": sum(row["tokens"] for row in rows) / train_time,
            "mem allocated avg": _interval_memory(run, rows, "mem allocated avg"),
            "mem reserved avg": _interval_memory(run, rows, "mem reserved avg"),
            "elapsed time": elapsed,
        }
        start = step


def _last_row(run: Run) -> Iterator[dict[str, Any]]:
    """The row that carries the scores of a finished run."""
    if not run.finished:
        return
    if run.get("train.load_best_model_at_end"):
        reason = "train.load_best_model_at_end = true: s0 scores the weights of the last step"
        raise run.cannot("test accuracy", reason, "leave this run out")
    found = run.scored("test", "last")
    if not found:
        raise run.cannot("test accuracy", "the run was not scored on the test rows", "peftlab evaluate it first")
    curve = _curve(run)
    every = eval_steps(run) or len(curve)
    yield {
        "step": curve[-1]["step"],
        "test accuracy": _accuracy(run, found[-1], "test accuracy"),
        "train loss": _mean_loss(run, curve[-every:]),
        "train samples": _samples(run, curve[-1]),
        "train total tokens": run.needed("train total tokens", run.record["cost"].get("train_tokens")),
        "forgetting": _forgetting(run)[0],
    }


def _curve(run: Run) -> Sequence[Mapping[str, Any]]:
    if run.curve is None:
        raise run.cannot("train loss", "its step log (curve.jsonl) is gone", "restore the folder beside the record")
    return run.curve


def _metric(run: Run, evaluation: Mapping[str, Any], field: str) -> tuple[str, Mapping[str, Any]]:
    metrics = evaluation["metrics"]
    name = SCORE if SCORE in metrics else next(iter(metrics), "")
    found = metrics.get(name)
    if found is None or found["direction"] != "higher" or not 0 <= found["mean"] <= 1:
        raise run.cannot(field, f"'{name}' is no accuracy", "s0 has a share of right answers here")
    return name, found


def _accuracy(run: Run, evaluation: Mapping[str, Any], field: str) -> float:
    return float(_metric(run, evaluation, field)[1]["mean"])


def _mean_loss(run: Run, rows: Sequence[Mapping[str, Any]]) -> float:
    loss = sum(row["loss"] for row in rows) / len(rows)
    if not math.isfinite(loss):
        raise run.cannot("train loss", f"its mean up to step {rows[-1]['step']} is {loss}", "leave this run out")
    return float(loss)


def _samples(run: Run, row: Mapping[str, Any]) -> int:
    """Rows seen up to a step: passes over the rows, times their number."""
    passes, num_rows = float(row["epoch"]), int(run.needed("train samples", run.rows.get("num_rows")))
    return round(passes * num_rows)


def _interval_memory(run: Run, rows: Sequence[Mapping[str, Any]], field: str) -> int:
    """A CPU has one number for both: the resident size."""
    on_gpu = run.environment.get("accelerator") != "cpu"
    name = "allocated_bytes" if on_gpu and field == "mem allocated avg" else "memory_bytes"
    samples = [run.needed(field, row.get(name)) for row in rows]
    level = float(run.needed(field, run.memory.get("before_model")))
    return round(float(sum(samples)) / len(samples) - level)


def _forgetting(run: Run) -> tuple[float | None, str | None]:
    """FineWiki's, or null with the reason; another text's number would stand under a false name."""
    found = run.record["training"].get("forgetting") or {}
    text = str(found.get("text") or "").rpartition(":")[2]
    if text == "finewiki":
        return found.get("change"), found.get("reason")
    return None, f"measured on {text}, not on FineWiki" if found.get("change") is not None else found.get("reason")


# ------------------------------------------------------------------------------------------------------ meta_info


def _model_info(run: Run, unknown: dict[str, str]) -> dict[str, Any]:
    name = str(run.get("model.id"))
    if name.startswith(("package:", "./", "../", "/", "~")):
        return {"sha": None, "created_at": None}
    unknown["meta_info.model_info.created_at"] = "the hub is not asked when a run is exported"
    return {"sha": run.needed("model_info.sha", run.model.get("revision")), "created_at": None}


def _data_info(run: Run, name: str, unknown: dict[str, str]) -> dict[str, Any]:
    part, hub_id = _HUB_DATA[name]
    source = ((run.rows.get("parts") or {}).get(part) or {}).get("source") or {}
    if source.get("dataset") != hub_id:
        unknown[f"meta_info.dataset_info.{name}"] = f"the {part} rows are not those of {hub_id} on the hub"
        return {"sha": None, "created_at": None}
    unknown[f"meta_info.dataset_info.{name}.created_at"] = "the hub is not asked when a run is exported"
    revision = source.get("loaded_revision") or source.get("declared_revision")
    return {"sha": run.needed(f"dataset_info.{name}.sha", revision), "created_at": None}


def _packages(run: Run) -> dict[str, str | None]:
    """Versions and commits; null for a package that is not installed, or was installed without its repository."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        for section, suffix in (("versions", "version"), ("commits", "commit-hash")):
            known = run.environment.get(section) or {}
            if package not in known:
                run.needed(f"package_info.{package}-{suffix}", None)
            found[f"{package}-{suffix}"] = known[package]
    return found


def _own_section(run: Run, unknown: dict[str, str]) -> dict[str, Any]:
    """What the benchmark has no field for: whose record this is, what was scored, and how the protocol differed."""
    record, scored = run.record, None
    for one in run.scored("test", "last"):
        name, metric = _metric(run, one, "test accuracy")
        scored = {"metric": name, "num_items": metric["n"], "standard_error": metric["standard_error"]}
    forgetting, reason = _forgetting(run)
    if forgetting is None and record["status"] == "finished":
        unknown["train_info.metrics.forgetting"] = reason or "not measured"
    differs = {name: run.get(name) for name, plain in PROTOCOL.items() if run.get(name) not in (None, plain)}
    if run.get("quant.method") is not None and run.get("model.dtype") != "bfloat16":
        differs["model.dtype"] = run.get("model.dtype")  # of what is not quantised
    if run.get("train.mixed_precision") == "bf16":
        differs["train.mixed_precision"] = "bf16"
    if warms_up_longer(run):
        differs["optim.warmup_steps"] = run.get("optim.warmup_steps")
    if run.rows.get("partial"):
        differs["partial"] = run.rows["partial"]
    for name in ("target", "stop", "grader"):
        differs[f"task.{name}"] = run.spec["task"].get(name)
    return {
        "key": record["key"],
        "arm": record["arm"],
        "status": record["status"],
        "category": record["category"],
        "task": record["task"],
        "method": record["method"],
        "scored": scored,
        "not_in_s0": differs,
        "unknown": unknown,
    }
