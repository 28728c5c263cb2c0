"""Material for the tests of the command line: a task with local rows, experiment folders, records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftlab.records import record as records
from peftlab.records.record import Cost, Evaluation, Metric, Record

TASK = """
version: 1
kind: generate
valid: {dataset: ./rows, split: valid, sample: 60}
train: {dataset: ./rows, split: train}
columns: {question: question, answer: answer}
prompt: "{question}"
target: " {answer}"
grader: {name: numeric}
metrics: {exact_match: higher}
"""
PARAMETERS = {"task": "additions.yaml", "model": {"id": "org/tiny"}}
ADAPTER = {"peft_type": "LORA", "r": 8}


def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a task of local rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTLAB_PLUGINS", "")
    (tmp_path / "additions.yaml").write_text(TASK)
    (tmp_path / "rows").mkdir()
    for part in ("train", "valid"):
        lines = [json.dumps({"question": f"{number} + 1 ({part})", "answer": str(number + 1)}) for number in range(70)]
        (tmp_path / "rows" / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def experiment(folder: str, *, parameters: Any = PARAMETERS, adapter: Any = ADAPTER) -> str:
    """Write an experiment folder; text is written as it is, anything else as JSON."""
    path = Path("experiments") / folder
    path.mkdir(parents=True, exist_ok=True)
    for name, content in (("training_params.json", parameters), ("adapter_config.json", adapter)):
        if content is not None:
            (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def a_record(**changes: Any) -> Record:
    """A finished record with a score, a starting score and costs."""
    key = changes.pop("key", "0123456789abcdef")
    score, start = changes.pop("score", 0.5), changes.pop("start", 0.1)
    plain = {
        "status": "finished",
        "category": "main",
        "key": key,
        "arm": "a" * 16,
        "experiment": "lora/first",
        "method": "lora",
        "task": "additions",
        "seed": 0,
        "created_at": "2026-01-01T00:00:00+00:00",
        "identity": {"seed": 0, "optim": {"learning_rate": 0.001}},
        "spec": {"seed": 0, "optim": {"learning_rate": 0.001}, "train": {"max_steps": 100}},
        "evaluations": (evaluation("base", "base", start), evaluation(100, "last", score)),
        "cost": Cost(
            seconds={"train": 75.0, "test": 5.0}, num_trainable_parameters=460_800, num_parameters=135_000_000
        ),
        "provenance": {"versions": {"pydantic": "0.0.1", "no-such-package": "1.0", "absent": None}},
    }
    return Record(**{**plain, **changes})


def evaluation(checkpoint: Any, role: Any, score: float, part: str = "test") -> Evaluation:
    """A scored evaluation of 100 items."""
    metric = Metric(mean=score, standard_error=0.05, n=100, direction="higher")
    return Evaluation(
        key=f"{checkpoint}-{part}",
        what="task",
        task="additions",
        part=part,
        checkpoint=checkpoint,
        role=role,
        metrics={"exact_match": metric},
        num_items=100,
    )


def store(*found: Record, folder: str = "results") -> None:
    """Put records where the results of a run lie."""
    Path(folder).mkdir(exist_ok=True)
    for one in found:
        (Path(folder) / f"{one.stem}.json").write_text(records.to_json(one))
