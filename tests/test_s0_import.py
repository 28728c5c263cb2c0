"""Results of dialect s0 read as runs: old and new files, endings, comparison without pairs, damaged files."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab.cli import main
from peftlab.errors import UserError
from peftlab.verdicts import columns
from peftlab.verdicts.compare import compare
from s0_material import a_new_file, an_old_file, imported
from verdict_material import Lab, between


def test_an_old_file_becomes_a_run_with_what_it_knows(tmp_path: Path) -> None:
    (record,) = imported(tmp_path, an_old_file())
    assert (record.experiment, record.method, record.task, record.seed) == ("ia3/lr_0.001", "ia3", "metamath_gsm8k", 0)
    assert (record.status, record.category, record.imported_from) == ("finished", "test", "s0")
    test = record.evaluation("last")
    assert test is not None and test.folder is None and test.items is None
    metric = test.metrics["exact_match_s0"]
    assert metric.mean == 352 / 1002
    assert metric.n is None and metric.standard_error is None, "352 of 1002 is no share of 1319"
    memory = {"average": 14229219940, "percentile_99": 19115624366, "maximum": 24847056896}
    assert record.cost.memory_bytes == {**memory, "before_model": 0}, "the file counts from that level"
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
    found = columns.values(record)
    assert (found["train_samples"], found["memory_max"], found["train_seconds"]) == (20000, 300, 600.0)
    assert found["train_loss"] is None and record.training["mean_loss"] == 0.6
    assert "not the loss of the last step" in columns.reason(record, "train_loss")


@pytest.mark.parametrize(("finished", "last"), [(True, 5001), (False, 5000)])
def test_times_without_the_last_steps_are_no_train_time(tmp_path: Path, finished: bool, last: int) -> None:
    result = a_new_file()
    rows = result["train_info"]["metrics"]
    rows[-1]["step"] = last
    if not finished:
        result["train_info"] |= {"status": "canceled", "metrics": rows[:-1]}
    (record,) = imported(tmp_path, result)
    assert columns.values(record)["train_seconds"] is None
    assert "steps after the validation at step 5000" in columns.reason(record, "train_seconds")
    assert record.cost.seconds == {"validation": 40.0, "other": 960.0}


def test_of_two_files_of_one_run_the_older_is_named(tmp_path: Path) -> None:
    newer, other = a_new_file(), a_new_file()
    newer["run_info"]["created_at"] = "2026-07-21T10:00:00+00:00"
    other["run_info"]["train_config"] = {**other["run_info"]["train_config"], "seed": 1}
    old, new, seed = imported(tmp_path, a_new_file(), newer, other)
    found = compare([old, new, seed])
    (arm,) = found.tables[0].arms
    assert arm.seeds == (0, 1) and found.statuses == {"finished": 2}
    (gone,) = found.left_out
    assert (gone.stem, gone.status) == (old.stem, "finished") and new.stem in gone.reason


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
        ("run_info/peft_config", {"peft_type": "../x"}, ("run_info.peft_config.peft_type", "../x")),
        ("run_info/train_config/optimizer_kwargs", {"lr": "1e-4"}, ("optimizer_kwargs.lr", "1e-4", "number")),
        ("run_info/train_config/optimizer_kwargs", {"weight_decay": -1}, ("optimizer_kwargs.weight_decay", "-1")),
        ("train_info/train_time", -5, ("train_info.train_time", "-5")),
        ("train_info/metrics/2/train samples", 0.5, ("metrics[2].train samples", "whole number")),
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
