"""Heads that give a number, on encoders and decoders; what is stored of items that share a source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

import toy
from peftlab.config import loading
from peftlab.config import task as tasks
from peftlab.events import Evaluated
from peftlab.job import regrading, runs
from peftlab.loop import loss, training
from peftlab.modelling import adapting, models, weights
from peftlab.records.store import RunStore
from peftlab.rows import data, tokenise
from peftlab.rows.batching import collate
from peftlab.scores import classifying, evaluation

TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}
NUMBERS: dict[str, Any] = {
    "labels": [],
    "cluster": "answer",
    "grader": {"name": "correlation"},
    "metrics": {"pearson": "higher", "spearman": "higher", "mse": "lower"},
}


def experiment(tmp_path: Path, architecture: str, *, numbers: bool = True, **groups: Any) -> Path:
    """A head on an encoder (its body saved without one) or on a decoder."""
    model = tmp_path / f"model-{architecture}"
    toy.save_model(model, architecture)
    if architecture in toy.ENCODERS:
        torch.manual_seed(0)
        AutoModel.from_config(toy.config(architecture)).save_pretrained(model)
    kind, changes = ("regress", NUMBERS) if numbers else ("classify", {})
    task = toy.write_task(tmp_path / "task", kind=kind, **changes)
    adapter = {"peft_type": "LORA", "r": 4, "target_modules": TARGETS[architecture]}
    return toy.write_experiment(tmp_path, architecture=architecture, adapter=adapter, task=task, **groups)


@pytest.mark.parametrize("architecture", TARGETS)
def test_one_step_has_the_loss_and_gradients_of_transformers(tmp_path: Path, architecture: str) -> None:
    spec = loading.load(experiment(tmp_path, architecture))
    base = models.load(spec.model, models.kind_of(spec), labels=spec.task.labels, seed=0)
    assert base.model.config.problem_type == "regression" and base.model.config.num_labels == 1
    built = adapting.adapt(base, spec)
    rows, _ = tokenise.tokenise(
        data.load(spec).train[:5], built.tokenizer, kind=built.kind, max_length=32, loss_mask="answer"
    )
    batch = collate(rows, pad_id=built.pad_id)
    assert batch.classes is not None and batch.classes.dtype == torch.float32 and batch.weight == 5

    theirs = training.forward(built, batch, labelled=True).loss
    expected = torch.autograd.grad(theirs, list(built.trainable().values()))
    outputs = training.forward(built, batch)
    ours = loss.from_logits(outputs.logits, batch)
    found = torch.autograd.grad(ours.total / batch.weight, list(built.trainable().values()))
    mean, same = ours.total.item() / batch.weight, loss.as_the_library(outputs.logits, batch).item()
    assert mean == pytest.approx(theirs.item(), rel=1e-6) and same == pytest.approx(theirs.item(), rel=1e-6)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    by_hand = ((outputs.logits[:, 0].double() - torch.tensor([float(row.label or 0) for row in rows])) ** 2).sum()
    assert ours.total.item() == pytest.approx(by_hand.item(), rel=1e-6)


@pytest.mark.parametrize("architecture", TARGETS)
def test_a_regression_trains_is_scored_and_loads_again(tmp_path: Path, architecture: str) -> None:
    folder = experiment(tmp_path, architecture, train={"max_steps": 30, "eval_steps": 15})
    spec, store = loading.load(folder), RunStore(tmp_path / "results")
    record = runs.run(spec, store)
    assert record.before_reason is not None and "new regression head" in record.before_reason
    losses = record.curve["loss"]
    assert sum(losses[-5:]) < sum(losses[:5])
    found = record.evaluation("last")
    assert found is not None and list(found.metrics) == ["pearson", "mse", "spearman"]
    assert found.metrics["mse"].direction == "lower" and "baseline_mean_value_mse" in found.baselines

    stored = store.folder_of(record) / str(found.folder)
    samples = [json.loads(line) for line in (stored / "samples.jsonl").read_text().splitlines()]
    assert json.loads((stored / "clusters.json").read_text()) == [sample["cluster"] for sample in samples]
    assert [sample["cluster"] for sample in samples] == [row["answer"] for row in toy.rows(12, 900)]
    said = np.array([sample["prediction"]["value"] for sample in samples])
    truth = np.array([float(len(row["answer"]) % 2) for row in toy.rows(12, 900)])
    assert found.metrics["mse"].mean == pytest.approx(((said - truth) ** 2).mean())
    assert np.load(stored / "pearson.npy").shape == (12,)

    built = weights.load_trained(spec, store.folder_of(record) / "adapter")
    again = toy.drained(evaluation.score(built, data.load(spec).test, spec))
    assert again.metrics["mse"].mean == found.metrics["mse"].mean


def test_a_decoder_tells_classes_apart_and_a_metric_that_is_named_later_needs_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = experiment(tmp_path, "llama", numbers=False, train={"max_steps": 30})
    store = RunStore(tmp_path / "results")
    record = runs.run(loading.load(folder), store)
    losses = record.curve["loss"]
    assert sum(losses[-5:]) < sum(losses[:5])
    found = record.evaluation("last")
    assert found is not None and list(found.metrics) == ["acc"] and "f1" in found.notes
    stored = store.folder_of(record) / str(found.folder)
    assert (stored / "items.json").is_file() and not (stored / "clusters.json").exists()

    file = tmp_path / "task" / "toy.yaml"
    named = {"matthews_correlation": "higher", "acc": "higher"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": named, "cluster": "answer"}))
    monkeypatch.setattr(models, "load", None)
    events = list(runs.events(loading.load(folder), store))
    again = [event.evaluation for event in events if isinstance(event, Evaluated)]
    assert [list(one.metrics) for one in again] == [["matthews_correlation", "acc"]]
    assert again[0].metrics["acc"] == found.metrics["acc"] and (stored / "clusters.json").is_file()
    assert not [event for event in runs.events(loading.load(folder), store) if isinstance(event, Evaluated)]


def test_a_model_that_has_diverged_gives_no_number() -> None:
    assert classifying._value_of([float("nan")]).value is None
    assert classifying._class_of([float("nan"), 0.0]).index is None
    assert classifying._class_of([float("-inf"), 0.0]).index == 1
    assert classifying._value_of([2.5]).value == 2.5


def test_a_batch_of_one_row_is_no_batch_of_none(tmp_path: Path) -> None:
    spec = loading.load(experiment(tmp_path, "bert"))
    built = models.bare(models.load(spec.model, "classify", seed=0))
    one = spec.model_copy(update={"batch": spec.batch.model_copy(update={"per_device_eval_batch_size": 1})})
    rows = data.load(spec).test[:1]
    assert len(toy.drained(evaluation.score(built, rows, one)).samples) == 1
    batch = collate(classifying.rows_of(built, rows, spec, ()), pad_id=built.pad_id)
    assert loss.from_logits(torch.zeros(1, 1), batch).total.shape == ()


def test_grading_again_by_the_own_grader_changes_nothing(tmp_path: Path) -> None:
    """Of an error less is better, whoever asks."""
    store = RunStore(tmp_path / "results")
    folder = experiment(tmp_path, "llama", train={"max_steps": 1})
    before = [one.metrics for one in runs.run(loading.load(folder), store).evaluations]
    list(regrading.regrade(str(folder), store, grader="correlation"))
    (record,) = store.records()
    assert [one.metrics for one in record.evaluations] == before
    assert all(one.metrics["mse"].direction == "lower" for one in record.evaluations)


def test_another_grader_says_what_is_better_of_its_own_metrics() -> None:
    task = tasks.task_of({**PLAIN, "metrics": {"pearson": "higher"}}, where="here")
    assert tasks.direction_of(task, "mse") == "lower" and tasks.direction_of(task, "spearman") == "higher"
    task = tasks.task_of({**PLAIN, "metrics": {"mse": "higher"}}, where="here")
    assert tasks.direction_of(task, "mse") == "higher"  # what a task says stands


PLAIN: dict[str, Any] = {
    "name": "plain",
    "version": 1,
    "kind": "regress",
    "columns": {"a": "a", "b": "b"},
    "pair": ["a"],
    "reference": "b",
    "grader": {"name": "correlation"},
}
