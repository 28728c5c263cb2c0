"""Which evaluations a run asks for, and which of them are not stored yet. Scores nothing.

What is scored after training is the adapter as saved, loaded again; what is scored before it is the bare model, once
per model, task and settings, shared by all runs that start from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from peftlab.config.spec import RunSpec
from peftlab.config.task import Part, direction_of, graded_by, measured_metrics
from peftlab.digest import digest
from peftlab.errors import UserError
from peftlab.modelling import models
from peftlab.records.record import Evaluation
from peftlab.records.store import RunStore, Slot
from peftlab.rows import texts
from peftlab.scores import grading, samples

Role = Literal["base", "last", "best", "step"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One evaluation to be made: of a part of the task, of the general text or of a sample, with the weights of a step.

    `step` is None for the starting model, `sampled` for what is no sample. `adapter` is the content of a saved adapter
    that belongs to no run: then its weights are scored on the starting model, and kept as if it were another model.
    """

    what: Literal["task", "text", "sample"]
    part: Part
    role: Role
    step: int | None
    sampled: samples.Sampled | None = None
    adapter: str | None = None

    def under(self, spec: RunSpec) -> RunSpec:
        """The spec that it is made under, for the run `spec`."""
        if self.sampled is not None:
            return samples.spec_of(spec, self.sampled)
        return spec.model_copy(update={"endpoint": spec.endpoint.serving(start=self.of_start)})

    @property
    def of_start(self) -> bool:
        """Whether the weights are those of a model before training."""
        return self.step is None and self.adapter is None

    def source(self, spec: RunSpec, run_key: str) -> dict[str, Any]:
        """The weights, as plain data."""
        source = spec.base_identity() if self.step is None else {"run": run_key, "step": self.step}
        return source if self.adapter is None else {**source, "adapter": self.adapter}

    def key(self, spec: RunSpec, run_key: str) -> str:
        """The evaluation key under `spec`, of the weights of run `run_key` (or of the bare model)."""
        source = self.source(spec, run_key)
        if self.what == "text":
            return spec.text_key(source)
        key = self.under(spec).evaluation_key(self.part, source)
        return key if self.sampled is None else digest({"sample": self.sampled.suite, "of": key})


def wanted_evaluations(spec: RunSpec, *, step: int, role: Role, snapshots: tuple[int, ...] = ()) -> list[Wanted]:
    """What `train.evaluate` asks for; the starting model's come first, validations of kept snapshots before the end's.

    Args:
        spec: The run.
        step: Whose weights are the result.
        role: Why they are: `last` or `best`.
        snapshots: Steps whose weights were kept along the way.
    """
    if spec.train.evaluate == "none":
        return []
    whole = spec.train.evaluate == "all"
    parts: list[Part] = ["test"] if whole and spec.task.test is not None else []
    text = whole and spec.data.forgetting is not None and not spec.task.has_head
    sampled = samples.asked(spec) if whole else ()
    wanted: list[Wanted] = []
    if no_start(spec) is None:
        wanted += [Wanted(what="task", part=part, role="base", step=None) for part in parts]
    if text:
        wanted.append(Wanted(what="text", part="test", role="base", step=None))
    wanted += [Wanted(what="sample", part="test", role="base", step=None, sampled=one) for one in sampled]
    if spec.task.valid is not None:
        wanted += [Wanted(what="task", part="valid", role="step", step=kept) for kept in snapshots]
    wanted += [Wanted(what="task", part=part, role=role, step=step) for part in parts]
    if text:
        wanted.append(Wanted(what="text", part="test", role=role, step=step))
    return wanted + [Wanted(what="sample", part="test", role=role, step=step, sampled=one) for one in sampled]


def no_start(spec: RunSpec) -> str | None:
    """Why the starting model cannot be scored on this task, or None when it can."""
    if spec.task.has_head:
        head = "classification" if spec.task.kind == "classify" else "regression"
        return f"the starting model has a new {head} head: its score would be that of random weights"
    return None


def kept_snapshots(slot: Slot) -> tuple[int, ...]:
    """Steps whose weights were kept along the way."""
    return tuple(sorted(int(path.name.removeprefix("step-")) for path in (slot.folder / "snapshots").glob("step-*")))


def missing(spec: RunSpec, store: RunStore, slot: Slot, wanted: list[Wanted], run_key: str) -> list[Wanted]:
    """Those not stored yet; those on a text or a sample that cannot be had here are left out."""
    have = slot.evaluations()
    model = slot.get("model") or {"revision": models.commit_of(spec.model)}
    text = texts.for_forgetting(spec.data.forgetting) if any(one.what == "text" for one in wanted) else ""
    result = []
    for one in wanted:
        key = one.key(spec, run_key)
        stored = store.base_evaluation(key) if one.step is None else have.get(key)
        if one.step is None and stored is not None:
            same_start(stored, model.get("revision"))
        if is_current(spec, one, stored) or (one.what == "text" and isinstance(text, str)):
            continue
        if one.sampled is None or samples.unavailable(one.sampled.task) is None:
            result.append(one)
    return result


def is_current(spec: RunSpec, wanted: Wanted, stored: Evaluation | None) -> bool:
    """Whether an evaluation is stored, with the grades that its task asks for now."""
    return stored is not None and (wanted.what == "text" or _graded_as(wanted.under(spec), stored))


def _graded_as(spec: RunSpec, stored: Evaluation) -> bool:
    """Whether a stored evaluation has the grades that the task asks for now: grader, version, modes and directions.

    And whether its standard errors are over the sources of its items, where the task tells them apart.
    """
    directions = {name: metric.direction for name, metric in stored.metrics.items()}
    named = [name for name in measured_metrics(spec.task) if name in spec.task.metrics]
    undefined = stored.notes.get(grading.UNDEFINED, ())
    asked = {name: direction_of(spec.task, name) for name in {*directions, *named}.difference(undefined)}
    first = spec.task.primary_metric in (next(iter(directions), None), *undefined)
    counted = (spec.task.cluster is None) == (grading.CLUSTERS not in stored.notes)
    return stored.grader == graded_by(spec.task) and directions == asked and first and (counted or not stored.grader)


def same_start(found: Evaluation, revision: str | None) -> None:
    """Refuse a stored score of the starting model that is of another revision than a run trains."""
    scored = found.settings.get("loaded_revision")
    if None not in (scored, revision) and scored != revision:
        raise UserError(
            f"the starting model was scored at revision {scored}, this run has revision {revision} of it",
            fix=f"pin model.revision, or move the stored evaluation {found.folder} away",
        )
