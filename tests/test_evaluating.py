"""What a finished run may be scored on later, with which weights, against which starting model, and what is noted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import toy
from peftlab.config import loading
from peftlab.errors import UserError
from peftlab.events import Evaluated, Finished, Saved
from peftlab.job import evaluating, handover, runs
from peftlab.loop import training
from peftlab.modelling import models
from peftlab.protocols import find
from peftlab.records.payload import read_curve, read_progress
from peftlab.records.record import Record
from peftlab.records.store import RunStore
from peftlab.report import contents
from peftlab.verdicts.compare import compare

CLASSIFIER = {"peft_type": "LORA", "r": 4, "target_modules": ["query", "value"]}


def run(folder: Path, results: Path, **overrides: Any) -> Record:
    named = {key.replace("__", "."): value for key, value in overrides.items()}
    return runs.run(loading.load(folder, overrides=named), RunStore(results))


def evaluate(reference: str, results: Path, **more: Any) -> Record:
    events = evaluating.evaluate(reference, RunStore(results), **more)
    return [event for event in events if isinstance(event, Finished)][-1].record


def rows_of(folder: Path) -> Path:
    return Path(json.loads((folder / "training_params.json").read_text())["task"]).parent


def question_lengths(folder: Path) -> list[int]:
    lines = (rows_of(folder) / "test.jsonl").read_text().splitlines()
    return [len(json.loads(line)["question"]) for line in lines]


def told_by_their_limit(record: Record) -> Record:
    """The same record, with scores that say under which limit on new tokens they were made."""
    found = []
    for one in record.evaluations:
        limit = one.settings["generation"]["max_new_tokens"] / 100
        metrics = {name: metric.model_copy(update={"mean": limit}) for name, metric in one.metrics.items()}
        found.append(one.model_copy(update={"metrics": metrics}))
    return record.model_copy(update={"evaluations": tuple(found)})


def test_the_scores_of_a_run_stay_those_of_its_own_settings(tmp_path: Path) -> None:
    """Its kept weights are scored again under other limits: page, handed-over files and export show its own (5)."""
    folder = toy.write_experiment(tmp_path, train={"max_steps": 6, "eval_steps": 2, "evaluate": "valid"})
    record = run(folder, tmp_path / "results")
    for limit in (1, 2, 3, 4):
        completed = evaluate(record.key, tmp_path / "results", overrides={"generation.max_new_tokens": limit})
    spec, store = loading.load(folder, overrides={"train.evaluate": "all"}), RunStore(tmp_path / "results")
    completed = told_by_their_limit(runs.run(spec, store))
    assert sum(one.part == "valid" for one in completed.evaluations) == 3 * 5
    last_of_each = {one.checkpoint: one for one in completed.evaluations if one.part == "valid"}
    assert [one.metrics["exact_match"].mean for one in last_of_each.values()] == [0.05, 0.05, 0.05]
    (shown,) = contents.page(compare([completed], store.evaluation_folder), [completed], folder="f", version="0").runs
    assert shown.validation["exact_match"].steps == (2, 4, 6)
    assert shown.validation["exact_match"].values == (0.05, 0.05, 0.05)
    history = handover.trainer_state(spec, completed, [])["log_history"]
    assert [(row["step"], row["eval_exact_match"]) for row in history if "eval_exact_match" in row] == [
        (2, 0.05),
        (4, 0.05),
        (6, 0.05),
    ]
    payload = store.folder_of(completed)
    facts = {"curve": read_curve(payload), "state": read_progress(payload).state}
    exported = find("dialects", "s0").export_result(completed.model_dump(mode="python"), facts)
    rows = exported["train_info"]["metrics"]
    assert [(row["step"], row.get("valid accuracy")) for row in rows] == [(2, 0.05), (4, 0.05), (6, 0.05), (6, None)]


# -------------------------------------------------------------------------------------------------------- other tasks


@pytest.mark.parametrize(("trained", "asked"), [("generate", "classify"), ("classify", "generate")])
def test_a_task_that_needs_another_head_is_refused(tmp_path: Path, trained: str, asked: str) -> None:
    changes: dict[str, Any] = {"architecture": "bert", "adapter": CLASSIFIER} if trained == "classify" else {}
    record = run(toy.write_experiment(tmp_path, **changes), tmp_path / "results", train__max_steps=1)
    other = toy.write_task(tmp_path / "other", kind=asked)
    with pytest.raises(UserError, match=rf"'toy' \({trained}\) and cannot be scored on 'toy' \({asked}\)"):
        evaluate(record.key, tmp_path / "results", task=str(other))


def test_a_task_with_other_classes_is_refused(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, architecture="bert", adapter=CLASSIFIER)
    record = run(folder, tmp_path / "results", train__max_steps=1)
    for labels in (["odd", "even"], ["even", "odd", "neither"]):
        other = toy.write_task(tmp_path / "other", kind="classify", labels=labels)
        with pytest.raises(UserError, match=rf"tells apart even, odd; 'toy' has the classes {', '.join(labels)}"):
            evaluate(record.key, tmp_path / "results", task=str(other))
    same = toy.write_task(tmp_path / "other", kind="classify", test=7)
    found = evaluate(record.key, tmp_path / "results", task=str(same))
    assert 7 in [one.num_items for one in found.evaluations]


# ------------------------------------------------------------------------------------------------ steps and their role


@pytest.mark.parametrize("named", ["6", "last", "best"])
def test_the_result_keeps_its_role_however_it_is_named(tmp_path: Path, named: str) -> None:
    folder = toy.write_experiment(tmp_path, train={"eval_steps": 6, "evaluate": "valid" if named == "best" else "none"})
    record = run(folder, tmp_path / "results")
    record = evaluate(record.key, tmp_path / "results", checkpoint=named)
    record = evaluate(record.key, tmp_path / "results")
    last = record.evaluation("last")
    assert last is not None and last.checkpoint == 6
    assert not [one for one in record.evaluations if one.part == "test" and one.role == "step"]


def test_the_last_step_can_be_scored_where_a_better_one_was_kept(tmp_path: Path) -> None:
    changes = {"max_steps": 6, "eval_steps": 4, "load_best_model_at_end": True}
    folder = toy.write_experiment(tmp_path, train=changes)
    record = run(folder, tmp_path / "results")
    assert (record.training["step"], record.training["last_step"]) == (4, 6)
    completed = evaluate(record.key, tmp_path / "results", checkpoint="last")
    assert [one.checkpoint for one in completed.evaluations if one.part == "test"] == ["base", 4, 6]
    assert [one.checkpoint for one in completed.evaluations if one.part == "valid"] == [4]  # as it was trained
    plain = run(folder, tmp_path / "plain", train__load_best_model_at_end=False)
    kept = RunStore(tmp_path / "results").folder_of(record) / "snapshots" / "last" / "adapter_model.safetensors"
    last = RunStore(tmp_path / "plain").folder_of(plain) / "adapter" / "adapter_model.safetensors"
    assert kept.read_bytes() == last.read_bytes()


# --------------------------------------------------------------------------------------------------- saved adapters


@pytest.mark.parametrize("adapter", [toy.LORA, None], ids=["lora", "full"])
def test_the_adapter_folder_of_a_run_stands_for_the_run(
    tmp_path: Path, adapter: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy.write_experiment(tmp_path, adapter=adapter)
    record = run(folder, tmp_path / "results")
    saved = RunStore(tmp_path / "results").folder_of(record) / "adapter"
    monkeypatch.setattr(training, "steps", None)
    overrides = {"generation.max_new_tokens": 3}
    completed = evaluate(str(saved), tmp_path / "results", overrides=overrides)
    assert completed.key == record.key and len(completed.evaluations) == 2 * len(record.evaluations)


def test_an_adapter_of_no_run_needs_a_task(tmp_path: Path) -> None:
    record = run(toy.write_experiment(tmp_path), tmp_path / "results")
    foreign = tmp_path / "downloaded"
    shutil.copytree(RunStore(tmp_path / "results").folder_of(record) / "adapter", foreign)
    with pytest.raises(UserError, match=r"which task should '.*downloaded' be scored on"):
        evaluate(str(foreign), tmp_path / "results")


# ------------------------------------------------------------------------------------------- models without a revision


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local cache of the hub with two commits of org/tiny; `main` is the first."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    model = cache / "models--org--tiny"
    for seed, commit in enumerate(("a" * 40, "b" * 40)):
        toy.save_model(model / "snapshots" / commit, seed=seed)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("a" * 40)
    return model


def unpinned(tmp_path: Path) -> Path:
    """An experiment on org/tiny; its data are local."""
    return toy.write_experiment(tmp_path, model={"id": "org/tiny"})


def test_the_commit_of_an_unpinned_model_is_recorded(tmp_path: Path, hub: Path) -> None:
    folder = unpinned(tmp_path)
    for revision, pinned in ((None, False), ("main", False), ("a" * 40, True)):
        settings = loading.load(folder, overrides={"model.revision": revision}).model
        facts = models.load(settings, "causal").facts
        assert (facts["revision"], facts["pinned"]) == ("a" * 40, pinned)
    record = run(folder, tmp_path / "results", train__max_steps=2)
    assert record.provenance["model"]["revision"] == "a" * 40
    assert {one.settings["loaded_revision"] for one in record.evaluations} == {"a" * 40}


def test_a_run_does_not_go_on_with_another_commit_of_its_model(tmp_path: Path, hub: Path) -> None:
    resolved = loading.load(unpinned(tmp_path))
    events = runs.events(resolved, RunStore(tmp_path / "results"))
    for event in events:
        if isinstance(event, Saved):
            break
    events.close()  # type: ignore[attr-defined]
    (hub / "refs" / "main").write_text("b" * 40)
    with pytest.raises(UserError, match=f"revision {'a' * 40} of its model, now it is {'b' * 40}"):
        runs.run(resolved, RunStore(tmp_path / "results"))


def test_a_starting_model_of_another_commit_is_no_start(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs share the score of the bare model only while it is the same model."""
    folder = unpinned(tmp_path)
    first = run(folder, tmp_path / "results", train__max_steps=1)
    (hub / "refs" / "main").write_text("b" * 40)
    words = rf"scored at revision {'a' * 40}, this run has revision {'b' * 40}"
    with monkeypatch.context() as patch, pytest.raises(UserError, match=words):
        patch.setattr(training, "steps", None)  # before any time is spent
        run(folder, tmp_path / "results", seed=1, train__max_steps=1)
    with pytest.raises(UserError, match=words):
        list(
            evaluating.evaluate(
                "hub:org/tiny",
                RunStore(tmp_path / "results"),
                task=str(rows_of(folder) / "toy.yaml"),
                overrides={"batch.per_device_eval_batch_size": 5},
            )
        )
    assert run(folder, tmp_path / "results", train__max_steps=1) == first  # what is finished stays so


# ------------------------------------------------------------------------------------------------------- general text


def test_a_text_that_changed_is_no_measure_of_forgetting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    entry = {"folder": ".", "splits": {"test": "text.jsonl"}, "partial": []}
    (mirror / "mirror.json").write_text(json.dumps({"Salesforce/wikitext:wikitext-2-v1": entry}))
    monkeypatch.setenv("PEFTLAB_MIRROR", str(mirror))
    folder = toy.write_experiment(tmp_path, data={"forgetting": "wikitext2"}, train={"max_steps": 1})
    (mirror / "text.jsonl").write_text(json.dumps({"text": "one and the same line. " * 70}) + "\n")
    assert run(folder, tmp_path / "results").training["forgetting"]["change"] is not None
    (mirror / "text.jsonl").write_text(json.dumps({"text": "another of this length. " * 70}) + "\n")
    with pytest.raises(UserError, match="scored on another text 'wikitext2' than this run"):
        run(folder, tmp_path / "results", seed=1)


# --------------------------------------------------------------------------------------------------- what did not fit


def test_cut_rows_of_a_classification_are_noted(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, architecture="bert", adapter=CLASSIFIER, data={"max_length": 12})
    found = run(folder, tmp_path / "results", train__max_steps=1).evaluation("last")
    cut = sum(length + 2 > 12 for length in question_lengths(folder))  # a token a character, <cls> and <sep>
    assert found is not None and 0 < cut < len(question_lengths(folder)) and found.notes["truncated"] == cut


def test_prompts_without_room_are_noted_and_stay_so_when_graded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy.write_experiment(tmp_path, generation={"max_length": 13})
    record = run(folder, tmp_path / "results", train__max_steps=1)
    too_long = sum(length + len(" =") >= 13 for length in question_lengths(folder))
    assert 0 < too_long < len(question_lengths(folder))
    assert [one.notes["truncated"] for one in record.evaluations] == [too_long] * 2
    task = rows_of(folder) / "toy.yaml"
    plain = json.loads(task.read_text())
    plain["grader"]["modes"] = ["flexible", "strict"]
    plain["metrics"] = {"exact_match_flexible": "higher", "exact_match": "higher"}
    task.write_text(json.dumps(plain))
    monkeypatch.setattr(models, "load", None)
    events = list(runs.events(loading.load(folder, overrides={"train.max_steps": 1}), RunStore(tmp_path / "results")))
    again = [event.evaluation for event in events if isinstance(event, Evaluated)]
    assert [next(iter(one.metrics)) for one in again] == ["exact_match_flexible"] * 2
    assert [one.notes["truncated"] for one in again] == [too_long] * 2
