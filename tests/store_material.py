"""Material for the tests of runs on disk: a declared run, its record, what it writes, and what must lie there then."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab.config import loading
from peftlab.config.spec import RunSpec
from peftlab.records.record import Evaluation, Metric, Record
from peftlab.records.store import RunStore

TASK = """
version: 1
kind: classify
train: {dataset: some/data, split: train}
columns: {text: text, label: label}
pair: [text]
labels: [bad, good]
reference: label
grader: {name: label}
metrics: {acc: higher}
"""


class Stopped(Exception):
    """Any exception that the store knows nothing of."""


def quick_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """A store that does not wait for the disk.

    A killed process loses nothing that the kernel has; only a power cut would, which no test makes.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return RunStore(folder / "results")


def make_spec(
    folder: Path, experiment: str = "lora/small", *, seed: int = 0, task: str = "toy", **overrides: Any
) -> RunSpec:
    experiments = folder / "experiments" / experiment
    experiments.mkdir(parents=True, exist_ok=True)
    (experiments / "training_params.json").write_text(json.dumps({"model": {"id": "some/model"}}))
    yaml = folder / f"{task}.yaml"
    yaml.write_text(TASK)
    return loading.load(
        experiments, task=str(yaml), seed=seed, overrides={k.replace("__", "."): v for k, v in overrides.items()}
    )


def record_of(run: RunSpec, *, category: Any = "main", **changes: Any) -> Record:
    plain = {
        "status": "finished",
        "category": category,
        "key": run.train_key,
        "arm": run.arm,
        "experiment": run.experiment,
        "method": run.method,
        "task": run.task.name,
        "seed": run.seed,
        "created_at": "2025-01-01T00:00:00+00:00",
        "identity": run.identity(),
        "spec": run.model_dump(mode="json"),
    }
    return Record.model_validate({**plain, **changes})


def evaluation(key: str = "e" * 16, *, mean: float = 0.5, task: str = "toy") -> Evaluation:
    metric = Metric(mean=mean, standard_error=0.1, n=3, direction="higher")
    return Evaluation(
        key=key, what="task", task=task, part="test", checkpoint=10, role="last", metrics={"acc": metric}, num_items=3
    )


def add(slot: Any, found: Evaluation) -> Evaluation:
    samples = ({"item": name, "text": "x"} for name in "abc")
    outcomes = {"acc": np.array([1.0, 0.0, found.metrics["acc"].mean])}
    stored: Evaluation = slot.add(found, samples=samples, items=list("abc"), outcomes=outcomes)
    return stored


def finish(store: RunStore, run: RunSpec, *, category: Any = "main", **changes: Any) -> Record:
    with store.claim(run, category=category) as slot:
        slot.log({"step": 1, "loss": 1.0})
        add(slot, evaluation())
        return slot.finish(record_of(run, category=category, evaluations=tuple(slot.evaluations().values()), **changes))


def train(store: RunStore, run: RunSpec, *, number: int = 1, rerun: bool = False) -> None:
    """A small run that goes on from where it was, as the real one does."""
    with store.claim(run, category="main", rerun=rerun) as slot:
        if slot.finished is not None:
            return
        step = slot.get("step", 0)
        slot.truncate_curve(step)
        while step < 2:
            step += 1
            slot.log({"step": step})
            slot.put(step=step)
        if not slot.evaluations():
            add(slot, evaluation())
        slot.finish(record_of(run, evaluations=tuple(slot.evaluations().values()), provenance={"number": number}))


def files(*folders: Path) -> list[str]:
    """Everything in the folders but locks and the (perhaps empty) folders themselves."""
    found = [path for folder in folders for path in folder.rglob("*")]
    return sorted(str(path.relative_to(path.anchor)) for path in found if ".locks" not in path.parts)


def check_finished(store: RunStore, run: RunSpec) -> Record:
    (record,) = store.records()
    assert record.status == "finished" and store.problems == [] and store.running() == []
    payload = store.folder_of(record)
    assert sorted(os.listdir(payload)) == ["curve.jsonl", "evaluations", "progress.json"]
    assert [json.loads(line) for line in (payload / "curve.jsonl").read_text().splitlines()] == [
        {"step": step} for step in (1, 2)
    ]
    check_evaluation(store, record)
    leftovers = [name for folder in store.places.all() for name in files(folder) if "/." in name.split("results", 1)[1]]
    assert leftovers == [] and files(store.places.cancelled) == []
    return record


def check_evaluation(store: RunStore, record: Record) -> None:
    (found,) = record.evaluations
    folder = store.evaluation_folder(record, found)
    assert folder is not None
    assert np.load(folder / "acc.npy")[2] == found.metrics["acc"].mean
    assert json.loads((folder / "evaluation.json").read_text())["metrics"]["acc"]["mean"] == found.metrics["acc"].mean
    assert os.listdir(folder.parent) == [folder.name]
