"""Invented runs with outcomes on disk, for the tests of verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from peftlab.records.record import Evaluation, Metric, Record
from peftlab.verdicts.compare import Comparison, Pair, Table, compare

NUM_ITEMS = 120


class Lab:
    """A results folder of invented runs: outcomes on disk, records in `records`."""

    def __init__(self, root: Path, *, num_items: int = NUM_ITEMS) -> None:
        self.root = root
        self.records: list[Record] = []
        self.generator = np.random.default_rng(0)
        self.hardness = self.generator.random(num_items)

    def folder_of(self, record: Record, evaluation: Evaluation) -> Path | None:
        return None if evaluation.folder is None else self.root / evaluation.folder

    def evaluation(self, name: str, role: Any, values: Any, **changes: Any) -> Evaluation:
        values = np.asarray(values, dtype=np.float64)
        metric, direction = changes.pop("metric", "exact_match"), changes.pop("direction", "higher")
        (self.root / name).mkdir(parents=True, exist_ok=True)
        np.save(self.root / name / f"{metric}.npy", values)
        number = Metric(mean=float(values.mean()), standard_error=0.04, n=len(values), direction=direction)
        plain: dict[str, Any] = {
            "key": name,
            "what": "task",
            "task": "gsm8k",
            "part": "test",
            "checkpoint": "base" if role == "base" else 100,
            "role": role,
            "metrics": {metric: number},
            "folder": name,
            "items": "digest",
            "num_items": len(values),
            "settings": {"model": {"id": "org/tiny"}, "generation": {"few_shot": 0}, "device": "cpu"},
        }
        return Evaluation(**{**plain, **changes})

    def outcomes(self, skill: float) -> Any:
        """Binary outcomes: harder items are missed, with a little luck."""
        luck = self.generator.normal(size=self.hardness.size) * 0.1
        return (self.hardness + luck < skill).astype(np.float64)

    def run(self, experiment: str, seed: int, values: Any, base: Evaluation | None = None, **changes: Any) -> Record:
        arm = changes.get("arm", experiment)
        mine = changes.pop("evaluations", None)
        if mine is None:
            mine = (self.evaluation(f"{arm}-{seed}", "last", values),)
        plain: dict[str, Any] = {
            "status": "finished",
            "category": "main",
            "key": f"{arm}-{seed}".replace("/", "-"),
            "arm": arm,
            "experiment": experiment,
            "method": experiment.partition("/")[0],
            "task": "metamath",
            "seed": seed,
            "created_at": "2026-01-01",
            "identity": {},
            "spec": {"model": {"id": "org/tiny"}},
            "evaluations": (*([base] if base else []), *mine),
        }
        record = Record(**{**plain, **changes})
        self.records.append(record)
        return record

    def compare(self, **options: Any) -> Comparison:
        return compare(self.records, self.folder_of, **options)

    def table(self, **options: Any) -> Table:
        (table,) = self.compare(**options).tables
        return table


def between(table: Table, a: str, b: str) -> Pair:
    (found,) = [pair for pair in table.pairs if {pair.a, pair.b} == {a, b}]
    return found
