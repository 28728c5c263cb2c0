"""A benchmark as one line a model: the score on each of its tasks, and their mean. Tests nothing; `compare` does."""

from __future__ import annotations

import math
from collections.abc import Sequence

from peftlab.config import benchmarks
from peftlab.config.benchmarks import Benchmark
from peftlab.records.record import Evaluation, Metric
from peftlab.verdicts.table import UNKNOWN, Sheet, number

MARK = "*"
"""Behind a score of less than the data that it is named after."""


def sheet(name: str, scored: Sequence[tuple[str, Evaluation]]) -> Sheet:
    """The table of a benchmark.

    Args:
        name: Of the benchmark.
        scored: Evaluations, each with what was scored; of two on one task the later one stands.

    The mean is over the tasks, each with equal weight, and is given only where all were scored. Its interval takes the
    tasks as given and their items as independent: 1.96 standard errors, sqrt(sum of squared errors) / tasks.
    """
    benchmark = benchmarks.load(name)
    tasks = [benchmarks.task_of(benchmark, one).name for one in benchmark.tasks]
    lines: dict[tuple[str, str], dict[str, Metric]] = {}
    parts: set[tuple[str, str, str]] = set()
    baselines: dict[str, str] = {}
    for who, evaluation in scored:
        if evaluation.task in tasks and _belongs(evaluation, benchmark):
            chosen = benchmark.metric.get(benchmark.tasks[tasks.index(evaluation.task)])
            metric = evaluation.metrics.get(chosen or next(iter(evaluation.metrics), ""))
            if metric is not None:
                step = "-" if evaluation.checkpoint == "base" else str(evaluation.checkpoint)
                lines.setdefault((who, step), {})[evaluation.task] = metric
                parts.discard((who, step, evaluation.task))
                if evaluation.partial:
                    parts.add((who, step, evaluation.task))
                baselines[evaluation.task] = without_model(evaluation)
    rows = tuple(
        (who, step, *_cells([found.get(task) for task in tasks], [(who, step, task) in parts for task in tasks]))
        for (who, step), found in lines.items()
    )
    notes = [] if benchmark.rows is None else [f"{benchmark.rows} test rows of each task: a sample"]
    if parts:
        marked = [task for task in tasks if task in {task for _, _, task in parts}]
        notes.append(f"{MARK} from a part of the data: {', '.join(marked)}; a mean with such scores is marked too")
    told = [f"{task} {baselines[task]}" for task in tasks if baselines.get(task)]
    if told:
        notes.append(f"without a model: {'; '.join(told)}")
    return Sheet(
        title=f"benchmark {benchmark.name}",
        columns=("run", "step", *tasks, "mean", "95 % interval"),
        rows=rows,
        notes=tuple(notes),
    )


def without_model(evaluation: Evaluation) -> str:
    """What of an evaluation needs no model (the most frequent class, one constant answer), as text."""
    return ", ".join(f"{name.removeprefix('baseline_')} {value:.4f}" for name, value in evaluation.baselines.items())


def _belongs(evaluation: Evaluation, benchmark: Benchmark) -> bool:
    if evaluation.part != "test":
        return False
    if benchmark.rows is None:
        return evaluation.what == "task"
    return evaluation.what == "sample" and evaluation.settings.get("benchmark") == benchmark.name


def _cells(found: Sequence[Metric | None], parts: Sequence[bool]) -> list[str]:
    known = [metric for metric in found if metric is not None]
    cells = [
        UNKNOWN if metric is None else number(metric.mean) + MARK * part
        for metric, part in zip(found, parts, strict=True)
    ]
    mark = MARK * any(parts)
    if len(known) < len(found) or len({metric.direction for metric in known}) > 1:
        return [*cells, UNKNOWN, UNKNOWN]
    mean = sum(metric.mean for metric in known) / len(known)
    errors = [metric.standard_error for metric in known]
    if any(error is None for error in errors):
        return [*cells, number(mean) + mark, UNKNOWN]
    half = 1.96 * math.sqrt(sum(error**2 for error in errors if error is not None)) / len(known)
    return [*cells, number(mean) + mark, f"{mean - half:.4f} to {mean + half:.4f}"]
