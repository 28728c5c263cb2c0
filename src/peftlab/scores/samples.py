"""A benchmark's sample (`data.retention`): its tasks, and the spec that they are scored under. Scores nothing.

Every run is scored on the same rows under the same limits, whatever its own are, so one starting model is scored once.
Like the general text it is measured by default, so it asks for no network: its rows come from a mirror, a local file
or a generator, or it is left out with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftlab.config import benchmarks, loading, references
from peftlab.config.benchmarks import Benchmark
from peftlab.config.spec import RunSpec
from peftlab.config.task import Task
from peftlab.errors import UserError
from peftlab.rows import sources


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One task of a benchmark's sample.

    Attributes:
        benchmark: As it was named: a name or a path.
        named: The task, as the benchmark names it.
        task: Its sampled test rows, and nothing to train on.
        metric: Which of its metrics stands for it.
    """

    benchmark: str
    named: str
    task: Task
    metric: str

    @property
    def suite(self) -> str:
        """The benchmark's name, wherever its file lies."""
        return Path(self.benchmark).stem


def asked(spec: RunSpec) -> tuple[Sampled, ...]:
    """What `data.retention` asks for; nothing of a model with a head of its own.

    Raises:
        UserError: No such benchmark, it is no sample, or one of its tasks cannot be read.
    """
    if spec.data.retention is None or spec.task.has_head:
        return ()
    where, name = "data.retention", spec.data.retention
    found = benchmarks.load(name, where=where)
    if found.rows is None:
        known = [one for one in benchmarks.available() if benchmarks.load(one).rows is not None]
        raise UserError(
            f"{where} = {name}: that benchmark says no number of rows, so all of it would be scored twice a run",
            fix=f"name one that does ({', '.join(known)}), or null; peftlab evaluate RUN --benchmark {name}",
        )
    return tuple(_of(found, name, task) for task in found.tasks)


def find(benchmark: str, named: str) -> Sampled:
    """A task of a sample, both by name.

    Raises:
        UserError: The benchmark or its task cannot be read.
    """
    return _of(benchmarks.load(benchmark), benchmark, named)


def _of(benchmark: Benchmark, name: str, named: str) -> Sampled:
    task = benchmarks.sampled(benchmark, named)
    metric = benchmark.metric.get(named, task.primary_metric)
    return Sampled(benchmark=name, named=named, task=task, metric=metric)


def spec_of(spec: RunSpec, one: Sampled) -> RunSpec:
    """The spec under which a run, or a bare model, is scored on one task of a sample."""
    return loading.for_sample(spec, one.task)


def unavailable(task: Task) -> str | None:
    """Why the rows of a sample's task are not at hand, or None when they are."""
    source = task.test
    assert source is not None
    if task.has_head:
        return f"{task.name} needs a head of its own"
    if source.dataset is None or references.is_local(source.dataset):
        return None
    try:
        held = sources.read_mirror(source) is not None
    except UserError as error:
        return error.message
    return None if held else f"{sources.MIRROR_VARIABLE} names no mirror that holds {source.dataset}"
