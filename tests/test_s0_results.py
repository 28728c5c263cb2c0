"""Runs written as results of dialect s0: every field against the run's own files, refusals, statuses, files, verbs.

The reader at the top is written from the description of s0's processing (result files and dashboard), not from ours.
"""

from __future__ import annotations

import copy
import json
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
from peftlab.cli import main
from peftlab.config import loading
from peftlab.dialects import _s0_config, _s0_import, _s0_record, _s0_results
from peftlab.errors import UserError
from peftlab.events import Step
from peftlab.job import runs
from peftlab.records import exchange
from peftlab.records.record import Record, to_json
from peftlab.records.store import RunStore
from s0_material import FLAT, a_new_file, an_old_file

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


def test_what_s0_has_no_field_for_is_listed(tmp_path: Path) -> None:
    """Tensors without decay, and a quantised base whose rest is in float32: as files of dialect s1 are read."""
    overrides = {"quant.method": "bnb-int8", "model.dtype": "float32", "optim.decay_exempt": "bias_and_norm"}
    folder = toy.write_experiment(tmp_path)
    listed = []
    for given in (overrides, {"quant.method": "bnb-int8", "model.dtype": "bfloat16"}):
        names = ("key", "arm", "experiment", "method", "task", "category")
        record = {**dict.fromkeys(names, "x"), "status": "failed", "training": {}, "evaluations": []}
        nothing = ("environment", "git", "model", "adapter_config", "counts", "rows", "memory", "seconds")
        spec = loading.load(folder, overrides=given).model_dump(mode="json")
        run = _s0_record.Run(record=record, spec=spec, curve=None, **{name: {} for name in nothing})
        listed.append(_s0_results._own_section(run, {})["not_in_s0"])
    assert (listed[0]["model.dtype"], listed[0]["optim.decay_exempt"]) == ("float32", "bias_and_norm")
    assert not {"model.dtype", "optim.decay_exempt"} & set(listed[1])


def test_an_s0_folder_goes_in_and_an_s0_result_comes_out(tmp_path: Path) -> None:
    flat = {
        **FLAT,
        "model_id": str(toy.save_model(tmp_path / "model")),
        "dtype": "float32",
        "max_seq_length": 64,
        "max_steps": 4,
        "eval_steps": 2,
        "batch_size_eval": 4,
        "query_template": "Sum: {query} =",
        "generation_kwargs": {"max_length": 60, "max_new_tokens": 5},
        "seed": 5,
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
