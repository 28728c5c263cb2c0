"""A results folder on disk full of invented runs, for the tests of pages and filters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from peftlab.records.record import Cost, Record, to_json
from verdict_material import Lab

METHODS = {"lora": 2_000_000, "ia3": 40_000, "full": 130_000_000, "prompt": 9_000, "adalora": 3_000_000}


def folder(root: Path, *, arms: int = 8, seeds: int = 2, points: int = 100, num_items: int = 120) -> Path:
    """Write `arms` times `seeds` finished runs with outcomes, costs and curves; returns the results folder."""
    results = root / "results"
    lab = Lab(root / "outcomes", num_items=num_items)
    base = lab.evaluation("base/gsm8k-0", "base", lab.outcomes(0.2))
    for number in range(arms):
        method = list(METHODS)[number % len(METHODS)]
        for seed in range(seeds if number != 1 else 1):
            run(lab, method, number, seed, base, points)
    for record in lab.records:
        write(results, lab, record)
    return results


def run(lab: Lab, method: str, number: int, seed: int, base: Any, points: int) -> Record:
    """One invented run; which costs more is better, up to a point."""
    skill = 0.3 + 0.5 * (number * 7 % 11) / 11
    steps = [round(1 + index * 9.99) for index in range(points)]
    noise = lab.generator.normal(size=points) * 0.05
    losses = [2.5 / (1 + step / 90) + 0.4 - 0.2 * skill + float(noise[index]) for index, step in enumerate(steps)]
    arm = f"{method}/r{number}"
    valid = [
        lab.evaluation(
            f"valid-{number}-{seed}-{step}",
            "step",
            lab.outcomes(skill * step / 1000)[:20],
            part="valid",
            checkpoint=step,
            task="metamath",
            items=None,
            folder=None,
        )
        for step in range(250, 1001, 250)
    ]
    return lab.run(
        arm,
        seed,
        None,
        evaluations=(base, lab.evaluation(f"{arm}-{seed}", "last", lab.outcomes(skill)), *valid),
        key=f"{number:08x}{seed:08x}",
        arm=f"{number:016x}",
        created_at=f"2026-01-{1 + number % 28:02d}T10:00:00+00:00",
        curve={"step": steps, "loss": losses},
        spec={
            "model": {"id": "org/tiny"},
            "optim": {"learning_rate": 10.0 ** -(2 + number % 3)},
            "adapter": {"r": number},
        },
        rows={"num_rows": 4000},
        training={
            "final_loss": losses[-1] if losses else None,
            "epochs": 2.0,
            "last_step": 1000,
            "forgetting": {"text": "wiki", "change": 0.05 * skill, "reason": None}
            if number % 3
            else {"text": None, "change": None, "reason": "not asked for"},
        },
        cost=Cost(
            seconds={"train": 60.0 + 37 * (number % 13) + seed, "test": 20.0, "setup": 3.0},
            memory_bytes={
                "average": 2.0e9,
                "percentile_99": 2.4e9,
                "maximum": 2.5e9 + 3e8 * (number * 5 % 9),
                "before_model": 4e8,
            }
            if number != 3
            else None,
            num_trainable_parameters=METHODS[method] * (1 + number // len(METHODS)),
            num_parameters=135_000_000,
            adapter_bytes=4 * METHODS[method],
            train_tokens=1_000_000,
            unknown={"memory_bytes": "the system does not tell"} if number == 3 else {},
        ),
    )


def write(results: Path, lab: Lab, record: Record) -> None:
    """Put a record and its outcomes where a run would."""
    payload = results / record.stem
    for evaluation in record.evaluations:
        if evaluation.folder is not None:
            values = np.load(lab.root / evaluation.folder / "exact_match.npy")
            target = (results if evaluation.role == "base" else payload) / evaluation.folder
            target.mkdir(parents=True, exist_ok=True)
            np.save(target / "exact_match.npy", values)
            if evaluation.role == "base":
                (target / "evaluation.json").write_text(evaluation.model_dump_json())
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{record.stem}.json").write_text(to_json(record))
