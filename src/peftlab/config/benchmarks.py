"""Benchmarks: lists of tasks that are scored together (`benchmarks/<name>.yaml`), read and checked. Scores nothing.

A benchmark that names `rows` is a sample, such as the small general suite before and after training: so many test rows
of each task, the same ones for every run. Others take the rows that their tasks take.
"""

from __future__ import annotations

from pathlib import Path

from peftlab.config import task
from peftlab.config.settings import Settings, read_yaml, setting, validated
from peftlab.config.source import Names
from peftlab.config.task import Task
from peftlab.errors import UserError, unknown_name

FOLDER = Path(__file__).parent.parent / "benchmarks"


class Benchmark(Settings):
    """A benchmark's file, checked. `name` is the file's stem.

    Attributes:
        metric: Which metric of a task stands for it, where it is not the task's first.
    """

    name: str = setting(..., "the file's stem", key="none")
    description: str = setting("", "one sentence", key="none")
    citation: str = setting("", "paper or source", key="none")
    tasks: Names = setting(..., "names of tasks, or paths of YAML files of your own", key="none", min_length=1)
    metric: dict[str, str] = setting({}, "task: metric that stands for it", key="none")
    rows: int | None = setting(None, "so many test rows of each task; null: all that the task takes", key="none", gt=0)


def available() -> list[str]:
    """Names of the benchmarks that peftlab brings."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, *, where: str = "") -> Benchmark:
    """Read the benchmark `name`: one that peftlab brings, or the path of a YAML file of your own.

    Args:
        name: Name or path.
        where: What asked for it, for an error.

    Raises:
        UserError: No such benchmark, a mistake in its file, or a metric of a task that is not in it.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        if path.parent != FOLDER or "/" in name:
            raise UserError(
                f"benchmark file not found: {path}", fix="give a benchmark's name (peftlab list benchmarks) or a path"
            )
        raise unknown_name("benchmark", name, available(), where=where)
    found = validated(Benchmark, {"name": path.stem, **read_yaml(path)}, where=str(path))
    if len(set(found.tasks)) != len(found.tasks):
        raise UserError(f"{path}: a task is named twice", fix="name each task once")
    for one in found.metric:
        if one not in found.tasks:
            raise unknown_name("task", one, found.tasks, where=f"{path} [metric]")
    return found


def task_of(benchmark: Benchmark, named: str) -> Task:
    """One of a benchmark's tasks, which must have test rows.

    Raises:
        UserError: There is none of that name, it has no test rows, or does not measure the metric named.
    """
    try:
        found = task.load(named)
    except UserError as error:
        raise UserError(f"benchmark '{benchmark.name}': {error.message}", fix=error.fix) from error
    if found.test is None:
        raise UserError(f"benchmark '{benchmark.name}': task '{named}' has no test rows", fix="name another task")
    metric = benchmark.metric.get(named)
    if metric is not None and metric not in found.metrics:
        raise unknown_name("metric", metric, found.metrics, where=f"benchmark '{benchmark.name}', task '{named}'")
    return found


def sampled(benchmark: Benchmark, named: str) -> Task:
    """The test rows of one task that a sample takes of it, and nothing to train on.

    Raises:
        UserError: As `task_of`.
    """
    assert benchmark.rows is not None
    found = task_of(benchmark, named)
    assert found.test is not None
    metric = benchmark.metric.get(named, found.primary_metric)
    if found.metrics[metric] == "lower":
        raise UserError(
            f"benchmark '{benchmark.name}': less {metric} of '{named}' is better, but a sample's scores are averaged",
            fix="name a metric, or another task, of which more is better",
        )
    test = found.test.model_copy(update={"sample": benchmark.rows, "sample_by": "rank"})
    return found.model_copy(update={"train": None, "valid": None, "test": test})
