"""Material for the tests of dialect s0's results: its parameters, an old and a new result file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftlab.records import exchange
from peftlab.records.record import Record
from peftlab.records.store import RunStore

FLAT: dict[str, Any] = {
    "model_id": "org/model",
    "dtype": "bfloat16",
    "max_seq_length": 768,
    "batch_size": 4,
    "batch_size_eval": 50,
    "max_steps": 5000,
    "eval_steps": 250,
    "compile": False,
    "use_gc": False,
    "seed": 0,
    "grad_norm_clip": 1.0,
    "optimizer_type": "AdamW",
    "optimizer_kwargs": {"lr": 1e-4, "weight_decay": 0.1},
    "lr_scheduler": "cosine",
    "use_amp": False,
    "autocast_adapter_dtype": True,
    "attn_implementation": None,
    "generation_kwargs": {"max_length": 800, "max_new_tokens": 300},
    "query_template": "Question: {query} Think step by step.\nAnswer:",
    "init_kv_cache_prefix": None,
}


def an_old_file() -> dict[str, Any]:
    """As the first version of the benchmark wrote it: flat facts, `cuda_*`, no times of steps."""
    left_out = ("optimizer_type", "use_gc", "autocast_adapter_dtype", "init_kv_cache_prefix")
    config = {name: value for name, value in FLAT.items() if name not in left_out}
    return {
        "run_info": {
            "created_at": "2025-03-05T13:50:05+00:00",
            "total_time": 2711.09,
            "experiment_name": "ia3/lr_0.001",
            "peft_branch": "some-branch",
            "train_config": {**config, "optimizer_kwargs": {"lr": 0.001}, "generation_kwargs": {"max_length": 800}},
            "peft_config": {"peft_type": "IA3", "task_type": None, "target_modules": ["v_proj", "k_proj"]},
        },
        "train_info": {
            "cuda_memory_reserved_avg": 14229219940,
            "cuda_memory_max": 24847056896,
            "cuda_memory_reserved_99th": 19115624366,
            "train_time": 2238.65,
            "file_size": 1157064,
            "status": "success",
            "metrics": [
                {"step": 250, "valid accuracy": 4 / 51, "train loss": 1.13, "train samples": 1000},
                {"step": 5000, "test accuracy": 352 / 1002, "train loss": 0.63, "train samples": 20000},
            ],
        },
        "meta_info": {
            "model_sha": "m" * 40,
            "model_created_at": "2024-09-18T15:23:48+00:00",
            "dataset_sha": "d" * 40,
            "dataset_created_at": "2023-09-21T17:22:46+00:00",
            "package_info": {"peft-version": "0.14.1.dev0", "peft-commit-hash": "a" * 40},
            "system_info": {"system": "Linux", "gpu": "NVIDIA GeForce RTX 4090"},
            "pytorch_info": "PyTorch built with: ...",
        },
    }


def a_new_file(**changes: Any) -> dict[str, Any]:
    """As it writes them now."""
    row = {"valid accuracy": 0.5, "train loss": 0.8, "train samples": 10000, "train time": 300.0, "eval time": 20.0}
    last = {"train loss": 0.6, "train samples": 20000, "train total tokens": 4198051, "forgetting": 0.05}
    return {
        "run_info": {
            "created_at": "2026-07-20T10:00:00+00:00",
            "total_time": 1000.0,
            "experiment_name": "lora/r32",
            "peft_branch": "main",
            "peft_worktree_is_dirty": False,
            "train_config": FLAT,
            "peft_config": {"peft_type": "LORA", "r": 32, "use_dora": True, "base_model_name_or_path": "x"},
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": 100,
            "accelerator_memory_max": 300,
            "accelerator_memory_reserved_99th": 200,
            "train_time": 942.0,
            "file_size": 36715216,
            "num_trainable_params": 9175040,
            "num_total_params": 3221924864,
            "status": "success",
            "metrics": [
                {"step": 2500, **row},
                {"step": 5000, **row},
                {"step": 5000, "test accuracy": 636 / 1319, **last},
            ],
        },
        "meta_info": {
            "model_info": {"sha": "m" * 40, "created_at": "2024-09-18T15:23:48+00:00"},
            "dataset_info": {"metamath": {"sha": "a", "created_at": "b"}, "gsm8k": {"sha": "c", "created_at": "d"}},
            "package_info": {"peft-version": "0.20.0", "torch-commit-hash": None},
            "system_info": {"system": "Linux", "accelerator": "NVIDIA L40S"},
            "pytorch_info": "PyTorch built with: ...",
        },
        **changes,
    }


def imported(tmp_path: Path, *results: Mapping[str, Any]) -> list[Record]:
    files = []
    for number, result in enumerate(results):
        path = tmp_path / f"file-{number}.json"
        path.write_text(json.dumps(result))
        files.append(str(path))
    found = exchange.import_files(RunStore(tmp_path / "results"), files, dialect="s0")
    return [one.record for one in found]
