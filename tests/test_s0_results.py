"""Results to and from s0's format: every field against the run's own files, refusals, statuses, old and new files.

The reader at the top is written from the description of s0's processing (result files and dashboard), not from ours.
"""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import peftlab as pl
import toy
from peftlab import exchange, loading, runs
from peftlab.cli import main
from peftlab.dialects import _s0_config, _s0_import, _s0_record, _s0_results
from peftlab.errors import UserError
from peftlab.events import Step
from peftlab.record import Record, to_json
from peftlab.store import RunStore
from peftlab.verdicts.compare import compare
from verdict_material import Lab, between

LOWER_IS_BETTER = {"accelerator_memory_max", "train_time", "file_size", "train_loss", "num_trainable_params"}


def processed(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of s0's dashboard from a folder of results, and how many files were skipped."""
    rows, skipped = [], 0
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        run, train, meta = result["run_info"], result["train_info"], result["meta_info"]
        if train["status"] != "success":
            skipped += 1
            continue
        last = train["metrics"][-1]
        rows.append(
            {
                "experiment_name": run["experiment_name"],
                "peft_type": "full-finetuning" if run["peft_config"] is None else run["peft_config"]["peft_type"],
                "model_id": run["train_config"]["model_id"],
                "total_time": run["total_time"],
                "train_time": train["train_time"],
                "test_accuracy": last["test accuracy"],
                "train_loss": last["train loss"],
                "accelerator_memory_max": train["accelerator_memory_max"],
                "accelerator_memory_reserved_99th": train["accelerator_memory_reserved_99th"],
                "accelerator_memory_reserved_avg": train["accelerator_memory_reserved_avg"],
                "num_trainable_params": train["num_trainable_params"],
                "file_size": train["file_size"],
                "created_at": run["created_at"],
                "forgetting": last.get("forgetting", 123),
                "train_config": json.dumps(run["train_config"]),
                "peft_config": json.dumps(run["peft_config"]),
                "train_samples": last["train samples"],
                "train_total_tokens": last["train total tokens"],
                "bitsandbytes_version": meta["package_info"]["bitsandbytes-version"],
                "system_info": meta["system_info"],
            }
        )
    return rows, skipped


def frontier(rows: list[dict[str, Any]], x: str, y: str) -> set[str]:
    """Names of the rows that no other dominates: at least as good on both, better on one."""

    def good(row: Mapping[str, Any]) -> tuple[float, ...]:
        return tuple(-row[name] if name in LOWER_IS_BETTER else row[name] for name in (x, y))

    return {
        one["experiment_name"]
        for one in rows
        if not any(
            all(a >= b for a, b in zip(good(other), good(one), strict=True)) and good(other) != good(one)
            for other in rows
        )
    }


# ----------------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True, kw_only=True)
class Place:
    """A git work tree with experiments that ran on its main branch."""

    root: Path
    store: RunStore
    records: dict[str, Record]

    def payload(self, name: str) -> Path:
        return self.store.folder_of(self.records[name])

    def facts(self, name: str) -> dict[str, Any]:
        lines = (self.payload(name) / "curve.jsonl").read_text().splitlines()
        return {"curve": [json.loads(line) for line in lines], "state": {}}

    def plain(self, name: str = "lora/toy") -> dict[str, Any]:
        return copy.deepcopy(self.records[name].model_dump(mode="python"))

    def exported(self, name: str = "lora/toy") -> dict[str, Any]:
        return _s0_results.export_result(self.plain(name), self.facts(name))


IA3 = {"peft_type": "IA3", "target_modules": ["v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Three runs as the demo makes them: with validations, without, and full fine-tuning under autocast."""
    root = tmp_path_factory.mktemp("lab")
    folders = [
        toy.write_experiment(root, train={"max_steps": 6, "eval_steps": 2}),
        toy.write_experiment(root, name="ia3/toy", adapter=IA3, batch={"order": "shuffled"}),
        toy.write_experiment(root, name="full/toy", adapter=None, train={"max_steps": 4, "mixed_precision": "bf16"}),
    ]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "all"]):
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(root), *author, *command], check=True)
    store = RunStore(root / "results")
    records = [pl.run(pl.load(folder), store) for folder in folders]
    return Place(root=root, store=store, records={record.experiment: record for record in records})


# ------------------------------------------------------------------------------------------------------------ export


def test_s0s_own_processing_reads_the_runs(place: Place, tmp_path: Path) -> None:
    written = exchange.export(place.store, [], dialect="s0", folder=tmp_path)
    assert {one.path.name for one in written if one.path} == {"lora--toy.json", "ia3--toy.json", "full--toy.json"}
    rows, skipped = processed(tmp_path / "results")
    assert (len(rows), skipped) == (3, 0)
    by_name = {row["experiment_name"]: row for row in rows}
    assert {name: row["peft_type"] for name, row in by_name.items()} == {
        "lora/toy": "LORA",
        "ia3/toy": "IA3",
        "full/toy": "full-finetuning",
    }
    for name, record in place.records.items():
        row, payload = by_name[name], place.payload(name)
        curve = place.facts(name)["curve"]
        (scored,) = [path for path in (payload / "evaluations").glob("*/evaluation.json") if _is_test(path)]
        assert row["test_accuracy"] == np.load(scored.parent / "exact_match.npy").mean()
        interval = curve[-2:] if name == "lora/toy" else curve
        assert row["train_loss"] == pytest.approx(np.mean([one["loss"] for one in interval]), rel=1e-12)
        assert row["file_size"] == sum(file.stat().st_size for file in (payload / "adapter").glob("*.safetensors"))
        assert row["train_samples"] == 4 * len(curve)
        assert row["train_total_tokens"] == sum(one["tokens"] for one in curve)
        level = json.loads((payload / "progress.json").read_text())["state"]["memory_before_model"]
        resident = [one["memory_bytes"] - level for one in curve]
        assert row["accelerator_memory_reserved_avg"] == pytest.approx(np.mean(resident), abs=1)
        assert row["accelerator_memory_reserved_99th"] == pytest.approx(np.percentile(resident, 99), abs=1)
        assert row["accelerator_memory_max"] >= max(resident)
        assert row["train_time"] == pytest.approx(row["total_time"] - record.cost.seconds.get("validation", 0.0))
        assert row["model_id"] == str(place.root / "model-llama")
        assert row["forgetting"] is None, "not FineWiki's, so no number"
        assert row["system_info"]["accelerator"] == "cpu"
    assert by_name["lora/toy"]["num_trainable_params"] == 2 * (4 * (32 + 32) + 4 * (32 + 16))
    assert "ia3/toy" in frontier(rows, "num_trainable_params", "test_accuracy"), "the fewest parameters"


def _is_test(path: Path) -> bool:
    found = json.loads(path.read_text())
    return (found["part"], found["role"]) == ("test", "last")


def test_every_field_is_there_under_its_name_and_type(place: Place) -> None:
    result = place.exported()
    run, train, meta = result["run_info"], result["train_info"], result["meta_info"]
    assert set(run) == {
        *("created_at", "total_time", "experiment_name", "peft_branch", "peft_worktree_is_dirty"),
        *("train_config", "peft_config", "error_msg"),
    }
    assert (run["peft_branch"], run["peft_worktree_is_dirty"], run["error_msg"]) == ("main", False, "")
    assert set(run["train_config"]) == {
        *("model_id", "dtype", "max_seq_length", "batch_size", "batch_size_eval", "max_steps", "eval_steps", "compile"),
        *("use_gc", "seed", "grad_norm_clip", "optimizer_type", "optimizer_kwargs", "lr_scheduler", "use_amp"),
        *("autocast_adapter_dtype", "attn_implementation", "generation_kwargs", "query_template"),
        "init_kv_cache_prefix",
    }
    assert run["train_config"]["query_template"] == "{query} ="
    assert run["peft_config"]["r"] == 4 and "use_dora" in run["peft_config"], "peft's whole config"
    assert run["peft_config"]["target_modules"] == ["q_proj", "v_proj"], "a list, no set"
    whole = {
        *("accelerator_memory_reserved_avg", "accelerator_memory_max", "accelerator_memory_reserved_99th"),
        *("file_size", "num_trainable_params", "num_total_params"),
    }
    assert set(train) == {*whole, "train_time", "status", "metrics"}
    assert all(type(train[name]) is int for name in whole)
    *intervals, last = train["metrics"]
    assert [row["step"] for row in intervals] == [2, 4, 6]
    columns = {"step", "valid accuracy", "train loss", "train samples", "train time", "eval time", "tokens / sec"}
    assert set(intervals[0]) == columns | {"mem allocated avg", "mem reserved avg", "elapsed time"}
    assert set(last) == {"step", "test accuracy", "train loss", "train samples", "train total tokens", "forgetting"}
    curve = place.facts("lora/toy")["curve"]
    second = intervals[1]
    assert second["train loss"] == (curve[2]["loss"] + curve[3]["loss"]) / 2
    seconds = curve[2]["seconds"] + curve[3]["seconds"]
    assert second["train time"] == seconds
    assert second["tokens / sec"] == (curve[2]["tokens"] + curve[3]["tokens"]) / seconds
    assert second["train samples"] == 16
    assert set(meta) == {"model_info", "dataset_info", "package_info", "system_info", "pytorch_info", "peftlab_info"}
    nothing = {"sha": None, "created_at": None}
    assert meta["model_info"] == nothing and meta["dataset_info"] == {"metamath": nothing, "gsm8k": nothing}
    packages = ("transformers", "peft", "datasets", "bitsandbytes", "torch")
    suffixes = ("version", "commit-hash")
    assert set(meta["package_info"]) == {f"{package}-{suffix}" for package in packages for suffix in suffixes}
    assert meta["package_info"]["torch-version"] == place.records["lora/toy"].provenance["versions"]["torch"]
    assert set(meta["system_info"]) == {"system", "release", "version", "machine", "processor", "accelerator"}
    assert meta["pytorch_info"].startswith("PyTorch built with")
    assert meta["peftlab_info"]["not_in_s0"]["data.loss_mask"] == "answer"
    json.dumps(result, allow_nan=False)


def test_hub_models_and_data_name_their_commits(place: Place) -> None:
    plain = place.plain()
    plain["spec"]["model"]["id"], plain["provenance"]["model"]["revision"] = "org/model", "c" * 40
    for part, dataset in (("train", "meta-math/MetaMathQA"), ("test", "openai/gsm8k")):
        plain["rows"]["parts"][part]["source"] = {"dataset": dataset, "loaded_revision": part[0] * 40}
    meta = _s0_results.export_result(plain, place.facts("lora/toy"))["meta_info"]
    assert meta["model_info"]["sha"] == "c" * 40
    assert {name: info["sha"] for name, info in meta["dataset_info"].items()} == {
        "metamath": "t" * 40,
        "gsm8k": "t" * 40,
    }
    assert "created_at" in str(meta["peftlab_info"]["unknown"])


def test_an_older_parser_score_is_preferred_where_there_is_one(place: Place) -> None:
    plain = place.plain()
    for one in plain["evaluations"]:
        one["metrics"]["exact_match_s0"] = {"mean": 0.25, "standard_error": 0.1, "n": 12, "direction": "higher"}
    plain["training"]["forgetting"] = {"text": "finewiki", "change": 0.05, "reason": None}
    *_, validation, last = _s0_results.export_result(plain, place.facts("lora/toy"))["train_info"]["metrics"]
    assert (validation["valid accuracy"], last["test accuracy"], last["forgetting"]) == (0.25, 0.25, 0.05)


def test_file_and_folder_are_s0s(place: Place) -> None:
    result = place.exported()
    created = result["run_info"]["created_at"].replace(":", "-")
    assert _s0_results.result_path(result) == "results/lora--toy.json"
    result["meta_info"]["peftlab_info"]["category"] = "test"
    assert _s0_results.result_path(result) == f"temporary_results/lora--toy--{created}.json"
    result["train_info"]["status"] = "canceled"
    assert _s0_results.result_path(result) == f"cancelled_results/lora--toy--{created}.json"
    assert ":" not in created


@pytest.mark.parametrize(
    ("status", "theirs"),
    [("cancelled", "canceled"), ("killed", "canceled"), ("failed", "failed"), ("out_of_memory", "failed")],
)
def test_a_run_that_ended_early_travels_with_its_status(tmp_path: Path, status: Any, theirs: str) -> None:
    spec = pl.load(toy.write_experiment(tmp_path, train={"max_steps": 6, "eval_steps": 2}))
    store = RunStore(tmp_path / "results")
    events = runs.events(spec, store)
    for event in events:
        if isinstance(event, Step) and event.step == 3:
            break
    events.close()  # type: ignore[attr-defined]
    (path,) = (tmp_path / "cancelled_results").glob("*.json")
    record = Record.model_validate_json(path.read_text()).model_copy(update={"status": status, "error": "the reason"})
    path.write_text(to_json(record))
    (written,) = exchange.export(store, [record.key], dialect="s0", folder=tmp_path / "out")
    assert written.path is not None and written.path.parent.name == "cancelled_results"
    result = json.loads(written.path.read_text())
    assert (result["train_info"]["status"], result["run_info"]["error_msg"]) == (theirs, "the reason")
    assert [row["step"] for row in result["train_info"]["metrics"]] == [2], "no test accuracy, but what was validated"
    assert type(result["train_info"]["accelerator_memory_max"]) is int and result["train_info"]["file_size"] is None
    assert processed(written.path.parent) == ([], 1)
    (back,) = exchange.import_files(RunStore(tmp_path / "b/results"), [str(written.path)], dialect="s0")
    assert back.record.status == status, "our own files say it exactly"


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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "int8", "max_steps": 77, "eval_steps": 7, "seed": 3},
        {"dtype": "int4", "lr_scheduler": None, "use_amp": True, "attn_implementation": "eager"},
        {
            "optimizer_type": "lora+",
            "optimizer_kwargs": {"lr": 1e-4, "loraplus_weight_decay": 0.3, "loraplus_lr_ratio": 9},
        },
        {"optimizer_type": "Rprop", "optimizer_kwargs": {"lr": 1e-2}},
        {"query_template": "{{{query}}} = ", "init_kv_cache_prefix": "Think.", "use_gc": True, "compile": True},
        {
            "generation_kwargs": {
                "max_length": 90,
                "max_new_tokens": 30,
                "do_sample": True,
                "temperature": 0.5,
                "num_beams": 2,
            }
        },
    ],
)
def test_parameters_come_back_as_s0_wrote_them(tmp_path: Path, changes: dict[str, Any]) -> None:
    flat = {**FLAT, **changes}
    folder = tmp_path / "experiments" / "lora" / "one"
    folder.mkdir(parents=True)
    (folder / "training_params.json").write_text(json.dumps(flat))
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    spec = loading.load(folder, dialect="s0")
    run = _s0_record.Run(
        record={"key": "k" * 16, "experiment": "lora/one", "status": "finished", "task": "t", "evaluations": []},
        spec=spec.model_dump(mode="json"),
        **{
            name: {}
            for name in ("environment", "git", "model", "adapter_config", "counts", "rows", "memory", "seconds")
        },
        curve=None,
    )
    found = _s0_config.train_config(run)
    assert {name: value for name, value in found["generation_kwargs"].items() if name in flat["generation_kwargs"]} == (
        flat["generation_kwargs"]
    )
    assert {**found, "generation_kwargs": None} == {**flat, "generation_kwargs": None}


def test_an_s0_folder_goes_in_and_an_s0_result_comes_out(tmp_path: Path) -> None:
    flat = {
        **FLAT,
        **{"model_id": str(toy.save_model(tmp_path / "model")), "dtype": "float32", "max_seq_length": 64},
        **{"max_steps": 4, "eval_steps": 2, "batch_size_eval": 4, "query_template": "Sum: {query} ="},
        **{"generation_kwargs": {"max_length": 60, "max_new_tokens": 5}, "seed": 5},
    }
    folder = tmp_path / "experiments" / "lora" / "flat"
    folder.mkdir(parents=True)
    task = str(toy.write_task(tmp_path / "task"))
    (folder / "training_params.json").write_text(json.dumps({**flat, "task": task}))
    (folder / "adapter_config.json").write_text(json.dumps(toy.LORA))
    store = RunStore(tmp_path / "results")
    record = pl.run(pl.load(folder), store)
    (written,) = exchange.export(store, [record.key], dialect="s0", folder=tmp_path / "out")
    assert written.path is not None
    result = json.loads(written.path.read_text())
    assert result["run_info"]["train_config"] == flat
    assert [row["step"] for row in result["train_info"]["metrics"]] == [2, 4, 4]
    told = result["meta_info"]["peftlab_info"]
    assert not {"batch.order", "data.loss_mask", "generation.limits", "batch.eval_order"} & set(told["not_in_s0"])


def _put(plain: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for part in parents:
        plain = plain[int(part) if isinstance(plain, list | tuple) else part]
    plain[last] = value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("spec/optim/lr_scheduler_type", "linear", ("lr_scheduler", "linear")),
        ("spec/optim/warmup_steps", 3, ("lr_scheduler", "warmup_steps = 3")),
        ("spec/quant/method", "bnb-nf4", ("dtype", "bnb-nf4")),
        ("spec/generation/few_shot", 4, ("generation_kwargs", "few_shot = 4")),
        ("spec/generation/chat_template", True, ("generation_kwargs", "chat_template")),
        ("spec/task/prompt", "{question} {answer}", ("query_template", "2 columns")),
        ("spec/task/kind", "classify", ("test accuracy", "classify")),
        ("spec/train/load_best_model_at_end", True, ("test accuracy", "load_best_model_at_end")),
        ("evaluations", (), ("test accuracy", "not scored")),
        ("provenance/torch_build", None, ("pytorch_info", "does not hold")),
        ("provenance/adapter_config", None, ("peft_config", "does not hold")),
        ("provenance/versions", {}, ("package_info.transformers-version",)),
        ("cost/memory_bytes", {"average": 1.0}, ("accelerator_memory_reserved_avg",)),
        ("cost/num_trainable_parameters", None, ("num_trainable_params",)),
        ("provenance/imported_from", "s0", ("imported from s0",)),
    ],
)
def test_what_s0_has_no_word_for_is_refused_by_name(
    place: Place, path: str, value: Any, words: tuple[str, ...]
) -> None:
    plain = place.plain()
    _put(plain, path, value)
    with pytest.raises(UserError) as caught:
        _s0_results.export_result(plain, place.facts("lora/toy"))
    assert all(word in str(caught.value) for word in words), caught.value
    assert caught.value.fix


def test_a_run_without_its_step_log_is_refused(place: Place) -> None:
    with pytest.raises(UserError, match=r"'train loss'.*curve\.jsonl"):
        _s0_results.export_result(place.plain(), {"curve": place.facts("lora/toy")["curve"][:4], "state": {}})


def test_export_never_replaces_and_never_writes_half(place: Place, tmp_path: Path) -> None:
    first = exchange.export(place.store, ["lora/toy"], dialect="s0", folder=tmp_path)
    again = exchange.export(place.store, ["lora/toy"], dialect="s0", folder=tmp_path)
    assert [one.new for one in first + again] == [True, False]
    (tmp_path / "results" / "lora--toy.json").write_text("somebody else's")
    with pytest.raises(UserError, match="with other content"):
        exchange.export(place.store, [], dialect="s0", folder=tmp_path)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["lora--toy.json"], "nothing else was written"


def test_two_runs_of_one_name_collide_aloud(place: Place, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "results")
    for number, key in enumerate(("1" * 16, "2" * 16)):
        record = place.records["ia3/toy"].model_copy(update={"key": key, "seed": number})
        path = store.path_of(record)
        path.parent.mkdir(exist_ok=True)
        path.write_text(to_json(record))
        path.with_suffix("").mkdir()
        curve = place.payload("ia3/toy") / "curve.jsonl"
        (path.with_suffix("") / "curve.jsonl").write_bytes(curve.read_bytes())
    with pytest.raises(UserError, match="would both be written"):
        exchange.export(store, [], dialect="s0", folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_named_when_all_are(place: Place, tmp_path: Path) -> None:
    broken = place.records["full/toy"].model_copy(update={"key": "3" * 16, "experiment": "full/other"})
    store = RunStore(tmp_path / "results")
    store.places.main.mkdir()
    store.path_of(broken).write_text(to_json(broken))
    with pytest.raises(UserError, match=r"no run in .* can be exported: .*'train loss'"):
        exchange.export(store, [], dialect="s0", folder=tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------ import


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


def test_an_old_file_becomes_a_run_with_what_it_knows(tmp_path: Path) -> None:
    (record,) = imported(tmp_path, an_old_file())
    assert (record.experiment, record.method, record.task, record.seed) == ("ia3/lr_0.001", "ia3", "metamath_gsm8k", 0)
    assert (record.status, record.category, record.imported_from) == ("finished", "test", "s0")
    test = record.evaluation("last")
    assert test is not None and test.folder is None and test.items is None
    metric = test.metrics["exact_match_s0"]
    assert metric.mean == 352 / 1002
    assert metric.n is None and metric.standard_error is None, "352 of 1002 is no share of 1319"
    assert record.cost.memory_bytes == {"average": 14229219940, "percentile_99": 19115624366, "maximum": 24847056896}
    assert record.cost.adapter_bytes == 1157064 and record.cost.num_trainable_parameters is None
    assert "train" not in record.cost.seconds and record.cost.unknown["train"]
    assert record.provenance["model"]["revision"] == "m" * 40
    assert record.provenance["accelerator"] == "NVIDIA GeForce RTX 4090"
    assert record.provenance["versions"]["peft"] == "0.14.1.dev0" and record.provenance["commits"]["peft"] == "a" * 40
    assert record.spec["optim"]["learning_rate"] == 0.001 and record.spec["model"]["id"] == "org/model"
    forgetting = record.training["forgetting"]
    assert forgetting["change"] is None and forgetting["reason"]
    (path,) = (tmp_path / "temporary_results").glob("*.json")
    assert record.key[:12] in path.name


def test_a_new_file_has_its_error_bar_and_costs(tmp_path: Path) -> None:
    (record,) = imported(tmp_path, a_new_file())
    test = record.evaluation("last")
    assert test is not None and record.category == "main" and record.method == "lora_dora"
    metric = test.metrics["exact_match_s0"]
    outcomes = np.array([1.0] * 636 + [0.0] * (1319 - 636))
    assert metric.n == 1319
    assert metric.standard_error == pytest.approx(outcomes.std(ddof=1) / math.sqrt(1319), rel=1e-12)
    assert record.cost.seconds == {"train": 600.0, "validation": 40.0, "other": 360.0}
    assert record.training["forgetting"]["change"] == 0.05
    assert record.curve == {"step": [2500, 5000], "loss": [0.8, 0.8]}
    assert record.cost.train_tokens == 4198051 and record.cost.num_parameters == 3221924864


def test_what_s0_got_wrong_stays_out(tmp_path: Path) -> None:
    early = a_new_file()
    early["run_info"]["created_at"] = "2026-06-30T10:00:00+00:00"
    early["train_info"]["file_size"] = 99999999
    (record,) = imported(tmp_path, early)
    assert record.training["forgetting"]["change"] is None and "0.05" in record.training["forgetting"]["reason"]
    assert record.cost.adapter_bytes is None and "99999999" in record.cost.unknown["adapter_bytes"]


@pytest.mark.parametrize(
    ("status", "message", "ours"),
    [
        ("canceled", "manually canceled", "cancelled"),
        ("canceled", "", "cancelled"),
        ("canceled", "CUDA out of memory. Tried to allocate 2 GiB", "out_of_memory"),
        ("canceled", "ValueError: no", "failed"),
        ("failed", "", "failed"),
    ],
)
def test_endings_are_told_apart_by_their_message(tmp_path: Path, status: str, message: str, ours: str) -> None:
    result = a_new_file()
    result["train_info"] |= {"status": status, "metrics": result["train_info"]["metrics"][:1]}
    result["run_info"]["error_msg"] = message
    (record,) = imported(tmp_path, result)
    assert record.status == ours and record.evaluation("last") is None
    assert len(list((tmp_path / "cancelled_results").glob("*.json"))) == 1


def test_importing_twice_is_importing_once(tmp_path: Path) -> None:
    first = imported(tmp_path, a_new_file(), an_old_file())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    again = imported(tmp_path, a_new_file(), an_old_file())
    assert [one.key for one in first] == [one.key for one in again]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_an_export_read_back_is_the_same_run(place: Place, tmp_path: Path) -> None:
    (written,) = exchange.export(place.store, ["lora/toy"], dialect="s0", folder=tmp_path)
    assert written.path is not None
    (here,) = exchange.import_files(place.store, [str(written.path)], dialect="s0")
    assert not here.new and here.record.key == place.records["lora/toy"].key, "the run itself is here"
    elsewhere = RunStore(tmp_path / "elsewhere" / "results")
    (there,) = exchange.import_files(elsewhere, [str(written.path)], dialect="s0")
    own, back = place.records["lora/toy"], there.record
    assert there.new and back.key != own.key and (back.task, back.experiment) == ("toy", "lora/toy")
    assert back.category == "main"
    mine, theirs = own.evaluation("last"), back.evaluation("last")
    assert mine is not None and theirs is not None
    assert theirs.metrics["exact_match"].mean == mine.metrics["exact_match"].mean
    assert theirs.num_items == 12
    assert back.spec["optim"]["learning_rate"] == 0.01 and back.spec["adapter"]["r"] == 4


def test_compare_shows_imported_runs_and_pairs_none(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab", num_items=1319)
    outcomes = lab.outcomes(0.5)
    own = lab.evaluation("own", "last", outcomes, task="metamath_gsm8k", metric="exact_match")
    np.save(tmp_path / "lab" / "own" / "exact_match_s0.npy", outcomes)
    both = {"exact_match": own.metrics["exact_match"], "exact_match_s0": own.metrics["exact_match"]}
    lab.run("lora/here", 0, outcomes, evaluations=(own.model_copy(update={"metrics": both}),))
    lab.records += imported(tmp_path, a_new_file(), an_old_file())
    (table,) = compare(lab.records, lab.folder_of).tables
    assert table.metric == "exact_match_s0", "the metric that imported runs have too"
    arms = {arm.label: arm for arm in table.arms}
    assert set(arms) == {"lora/here", "lora/r32", "ia3/lr_0.001"}
    there, old = arms["lora/r32"], arms["ia3/lr_0.001"]
    assert there.imported_from == "s0" and any("unpaired" in note for note in there.notes)
    assert arms["lora/here"].imported_from is None
    error = math.sqrt(636 / 1319 * 683 / 1319 / 1318)
    assert there.score.low == pytest.approx(636 / 1319 - 1.96 * error)
    assert (old.score.low, old.score.high, old.num_items) == (None, None, None)
    for pair in table.pairs:
        assert (pair.p, pair.low, pair.high, pair.winner, pair.num_items) == (None,) * 5
        assert "not paired" in pair.claim
    assert between(table, "lora/here", "lora/r32").difference != 0
    assert any("imported" in note for note in table.notes)
    (strict,) = compare(lab.records, lab.folder_of, metric="exact_match").tables
    assert [arm.label for arm in strict.arms] == ["lora/here"]


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("run_info", None, ("'run_info'",)),
        ("train_info", [], ("'train_info'", "object")),
        ("meta_info", "x", ("'meta_info'", "object")),
        ("run_info/experiment_name", "../../etc/passwd", ("run_info.experiment_name", "../../etc")),
        ("run_info/experiment_name", "lora/..", ("run_info.experiment_name",)),
        ("run_info/experiment_name", "/lora/x", ("run_info.experiment_name",)),
        ("run_info/experiment_name", 3, ("run_info.experiment_name", "text")),
        ("run_info/created_at", "yesterday", ("run_info.created_at", "yesterday")),
        ("run_info/train_config", None, ("run_info.train_config",)),
        ("run_info/train_config/model_id", 7, ("run_info.train_config.model_id",)),
        ("run_info/train_config/seed", -1, ("run_info.train_config.seed",)),
        ("run_info/peft_config", {"r": 8}, ("run_info.peft_config.peft_type", "missing")),
        ("train_info/status", "done", ("train_info.status", "done")),
        ("train_info/metrics", [], ("train_info.metrics", "no test accuracy")),
        ("train_info/metrics/2/test accuracy", 1.01, ("metrics[2].test accuracy", "1.01")),
        ("train_info/metrics/2/test accuracy", True, ("metrics[2].test accuracy",)),
        ("train_info/metrics/2/test accuracy", "0.5", ("metrics[2].test accuracy", "number")),
        ("train_info/metrics/2", 5, ("metrics[2]", "object")),
        ("train_info/metrics/0/step", 2.5, ("metrics[0].step", "whole number")),
        ("train_info/accelerator_memory_max", "much", ("train_info.accelerator_memory_max",)),
        ("train_info/file_size", 1.5, ("train_info.file_size",)),
    ],
)
def test_damaged_files_are_named_by_field(tmp_path: Path, path: str, value: Any, words: tuple[str, ...]) -> None:
    result = copy.deepcopy(a_new_file())
    *parents, last = path.split("/")
    inside: Any = result
    for part in parents:
        inside = inside[int(part) if isinstance(inside, list) else part]
    inside[int(last) if isinstance(inside, list) else last] = value
    with pytest.raises(UserError) as caught:
        imported(tmp_path, an_old_file(), result)
    assert all(word in str(caught.value) for word in ("file-1.json", *words)), caught.value
    assert not (tmp_path / "results").exists() and not (tmp_path / "temporary_results").exists(), "none, not half"


@pytest.mark.parametrize("section", ["run_info", "train_info", "meta_info"])
def test_a_missing_section_is_named(tmp_path: Path, section: str) -> None:
    result = a_new_file()
    del result[section]
    with pytest.raises(UserError, match=f"'{section}' is missing"):
        imported(tmp_path, result)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"run_info": ', "not valid JSON"),
        ("[1, 2]", "not an object"),
        ('{"run_info": 1, "run_info": 2}', "run_info"),
        ("{}", "'run_info' is missing"),
        ('{"version": 1, "status": "finished", "key": "0123"}', "'run_info' is missing"),
        ("\xff", ""),
    ],
)
def test_foreign_and_damaged_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.json").write_bytes(content.encode("latin-1"))
    assert main(["results", "import", "x.json"]) == 2
    error = capsys.readouterr().err
    assert "x.json" in error and words in error and "Traceback" not in error
    assert not Path("results").exists()


# -------------------------------------------------------------------------------------------------- command line


def test_the_verbs(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    mine = ["--results", str(place.store.places.main)]
    assert main(["results", "export", "--format", "s0", "lora/toy", "--to", "out", *mine]) == 0
    assert capsys.readouterr().out.strip() == "out/results/lora--toy.json"
    Path("old.json").write_text(json.dumps(an_old_file()))
    assert main(["results", "import", "out/results/lora--toy.json", "old.json"]) == 0
    assert "temporary_results/ia3--lr_0.001--metamath_gsm8k--seed0" in capsys.readouterr().out
    assert main(["results"]) == 0
    assert "exact_match_s0" in capsys.readouterr().out
    assert main(["results", "show", "ia3/lr_0.001"]) == 0
    assert "imported from" in capsys.readouterr().out
    assert main(["compare"]) == 0
    assert "imported from s0: unpaired" in capsys.readouterr().out
    assert main(["evaluate", "ia3/lr_0.001"]) == 2
    assert "was imported from s0" in capsys.readouterr().err
    for wrong in (
        ["export", "nothing", "--to", "x"],
        ["import", "gone.json"],
        ["export", "--format", "s9", "--to", "x"],
    ):
        assert main(["results", *wrong]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_results_travel_without_torch(tmp_path: Path) -> None:
    (tmp_path / "new.json").write_text(json.dumps(a_new_file()))
    code = (
        "import sys; from peftlab.cli import main\n"
        "assert main(['results', 'import', 'new.json']) == 0\n"
        "main(['results', 'export', '--to', 'x'])\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_two_sides_agree_on_their_words() -> None:
    assert (_s0_import.OWN_SECTION, _s0_import.SCORE) == (_s0_results.OWN_SECTION, _s0_results.SCORE)
