"""What is to be scored: the runs, saved adapters and models that words name, each with the tasks it is asked on.

Everything is looked at here before any of it is scored. Loads no weights and no rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.config import benchmarks, loading, references
from peftlab.config.settings import read_json, validated
from peftlab.config.spec import ADAPTER_FILE, RunSpec
from peftlab.digest import folder_digest
from peftlab.errors import UserError
from peftlab.job import preflight
from peftlab.modelling import beginning, models, swapping
from peftlab.modelling.adapting import method_of
from peftlab.records.record import Record
from peftlab.records.store import RunStore
from peftlab.scores import samples
from peftlab.scores import wanted as wanting

ADAPTER_FOLDER = "adapter"
"""Where a run keeps its result, in its own folder."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A task that is asked for: by name, None for a run's own; of a benchmark it is left out where it does not fit."""

    task: str | None
    of_benchmark: bool = False
    sampled: samples.Sampled | None = None


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One target on one task: the spec that it is scored under."""

    spec: RunSpec
    of_benchmark: bool = False
    sampled: samples.Sampled | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """One thing that is scored.

    Attributes:
        named: As the user named it.
        spec: Of the run; of a model or an adapter the first one that it is asked under.
        asks: What it is scored on.
        left_out: Tasks of benchmarks that do not fit it, each with the reason.
        record: The run's.
        folder: A saved adapter that belongs to no run.
        content: Digest of that adapter.
    """

    named: str
    spec: RunSpec
    asks: tuple[Ask, ...]
    left_out: tuple[str, ...] = ()
    record: Record | None = None
    folder: Path | None = None
    content: str | None = None

    @property
    def label(self) -> str:
        """For people."""
        return self.record.stem if self.record is not None else self.named


def questions(task: str | None, named: Iterable[str]) -> list[Question]:
    """A task and the tasks of benchmarks, each once; without either a run's own task.

    Raises:
        UserError: No such benchmark, or one of its tasks cannot be read.
    """
    found = {} if task is None else {(task, ""): Question(task=task)}
    for name in named:
        benchmark = benchmarks.load(name, where="--benchmark")
        for one in benchmark.tasks:
            if benchmark.rows is None:
                benchmarks.task_of(benchmark, one)
                found.setdefault((one, ""), Question(task=one, of_benchmark=True))
            else:
                found[one, name] = Question(task=one, of_benchmark=True, sampled=samples.find(name, one))
    return list(found.values()) or [Question(task=None)]


def resolve(
    named: Sequence[str], store: RunStore, asked: Sequence[Question], overrides: Mapping[str, Any]
) -> list[Target]:
    """The targets that words name, those on one base together, the ones that spoil it last.

    Raises:
        UserError: A word that names nothing, a setting of the training, or a task that does not fit.
    """
    found: list[Target] = []
    for reference in named:
        run, folder = _place(reference)
        model = _named_model(run) if folder is None else None
        if folder is not None:
            found.append(_adapter(reference, folder, asked, overrides))
        elif model is not None:
            found.append(_model(reference, model, asked, overrides))
        else:
            found += [_run(reference, record, store, asked, overrides) for record in store.find(run)]
    for target in found:
        for ask in target.asks:
            if ask.sampled is None and not (ask.of_benchmark and ask.spec.task.kind != "generate"):
                preflight.check_engine(ask.spec)
    groups = {swapping.Bases.key(target.spec): None for target in found}
    order = {key: place for place, key in enumerate(groups)}
    return sorted(found, key=lambda target: (order[swapping.Bases.key(target.spec)], _spoils(target)))


def _spoils(target: Target) -> int:
    """What is left of the base afterwards: all of it, less than all, none."""
    if target.record is None and target.folder is None:
        return 0
    if target.spec.adapter is None:
        return 3
    start = beginning.asked(target.spec)
    return 2 if start is not None and start.start.changes_base else 1


# ----------------------------------------------------------------------------------------------- what a word names


def _place(reference: str) -> tuple[str, Path | None]:
    """The run that a folder of saved weights lies in, or the folder of one of no run; other words as they are."""
    folder = Path(reference).expanduser().resolve()
    run = folder.parent
    if folder.name == ADAPTER_FOLDER and run.with_name(f"{run.name}.json").is_file():
        return str(run), None
    if (folder / ADAPTER_FILE).is_file() and any(folder.glob("adapter_model.*")):
        return reference, folder
    return reference, None


def _named_model(reference: str) -> str | None:
    """The model that a word names: `package:...`, `hub:org/name`, or a folder that holds a model."""
    if references.is_package(reference):
        return reference
    if reference.startswith("hub:"):
        return reference.removeprefix("hub:")
    path = Path(reference).expanduser()
    return str(path.resolve()) if (path / "config.json").is_file() else None


def _require_task(reference: str, asked: Sequence[Question]) -> None:
    if any(one.task is None for one in asked):
        raise UserError(f"which task should '{reference}' be scored on?", fix="add --task NAME")


def _chosen(pairs: Sequence[tuple[Ask, str | None]], label: str) -> tuple[tuple[Ask, ...], tuple[str, ...]]:
    """What fits, and why the rest of a benchmark does not.

    Raises:
        UserError: A task that was named does not fit, or nothing of a benchmark does.
    """
    fitting = tuple(ask for ask, reason in pairs if reason is None)
    for ask, reason in pairs:
        if reason is not None and (not ask.of_benchmark or not fitting):
            raise UserError(f"{label} {reason}", fix="name a task that fits, or train on this one")
    return fitting, tuple(f"{label} {reason}" for _, reason in pairs if reason is not None)


def _model(reference: str, model: str, asked: Sequence[Question], overrides: Mapping[str, Any]) -> Target:
    """A model as it is."""
    _require_task(reference, asked)
    pairs: list[tuple[Ask, str | None]] = []
    for one in asked:
        spec = loading.bare(model, task=str(one.task), overrides=overrides)
        spec = _served(spec)
        preflight.refuse_unsupported(spec)
        reason = wanting.no_start(spec)
        ask = Ask(spec=spec, of_benchmark=one.of_benchmark, sampled=one.sampled)
        pairs.append((ask, reason and f"cannot be scored on '{spec.task.name}': {reason}"))
    asks, left_out = _chosen(pairs, f"the model {reference}")
    return Target(named=reference, spec=asks[0].spec, asks=asks, left_out=left_out)


def _served(spec: RunSpec) -> RunSpec:
    """The spec of a model that is scored by itself: its one name on a server is that of a starting model."""
    endpoint = spec.endpoint
    return spec.model_copy(
        update={"endpoint": endpoint.model_copy(update={"base_model": endpoint.base_model or endpoint.model})}
    )


def _adapter(reference: str, folder: Path, asked: Sequence[Question], overrides: Mapping[str, Any]) -> Target:
    """A saved adapter that belongs to no run, on the base that it names."""
    _require_task(reference, asked)
    where = folder / ADAPTER_FILE
    config = read_json(where)
    if not isinstance(config.get("peft_type"), str):
        raise UserError(f"{where}: 'peft_type' is missing", fix="give a folder that peft's save_pretrained wrote")
    method_of(config, where=str(where))
    given = {"model.revision": config.get("revision"), **overrides}
    model = str(given.pop("model.id", None) or _base_of(config, folder))
    pairs: list[tuple[Ask, str | None]] = []
    for one in asked:
        spec = loading.bare(model, task=str(one.task), overrides=given)
        spec = spec.model_copy(
            update={"adapter": config, "experiment": f"adapter/{folder.name}", "folder": str(folder)}
        )
        preflight.refuse_unsupported(spec)
        needed = models.TASK_TYPES[models.kind_of(spec)]
        fits = config.get("task_type") in (needed, None)
        reason = f"is saved for {config.get('task_type')}, and '{spec.task.name}' ({spec.task.kind}) needs {needed}"
        ask = Ask(spec=spec, of_benchmark=one.of_benchmark, sampled=one.sampled)
        pairs.append((ask, None if fits else reason))
    asks, left_out = _chosen(pairs, f"the adapter {reference}")
    content = folder_digest(folder, (".json", ".safetensors"))
    spec = asks[0].spec
    return Target(named=reference, spec=spec, asks=asks, left_out=left_out, folder=folder, content=content)


def _base_of(config: Mapping[str, Any], folder: Path) -> str:
    """The model that a saved adapter names: a hub id, or a folder.

    Raises:
        UserError: It names none.
    """
    written = config.get("base_model_name_or_path")
    if not isinstance(written, str) or not written:
        raise UserError(f"{folder / ADAPTER_FILE} names no base model", fix="say which: model.id=...")
    if Path(written).expanduser().is_dir():
        return str(Path(written).expanduser().resolve())
    if references.is_local(written):
        raise UserError(
            f"{folder / ADAPTER_FILE}: the base model {written} is not here", fix="say where it is: model.id=..."
        )
    return written


def _run(
    reference: str, record: Record, store: RunStore, asked: Sequence[Question], overrides: Mapping[str, Any]
) -> Target:
    """A finished run."""
    if record.imported_from is not None:
        raise UserError(
            f"{record.stem} was imported from {record.imported_from}: it has scores, but no weights to score again",
            fix="train its experiment here",
        )
    own = validated(RunSpec, record.spec, where=str(store.path_of(record)))
    loading.refuse_model_code(own.model.model_dump(), overrides, str(store.path_of(record)))
    rest = {key: value for key, value in overrides.items() if key != "model.trust_remote_code"}
    pairs: list[tuple[Ask, str | None]] = []
    for one in asked:
        task = one.task if one.sampled is None else None
        spec = loading.with_evaluation(own, task=task, overrides=rest)
        ask = Ask(spec=spec, of_benchmark=one.of_benchmark, sampled=one.sampled)
        under = spec if one.sampled is None else samples.spec_of(spec, one.sampled)
        pairs.append((ask, _misfit(own, under, one.of_benchmark)))
    if own.train_key != record.key:
        raise UserError(
            f"{record.stem}: the files of its model or its data, or the grader that steered it, are not those it was "
            "trained with",
            fix="restore them, or run it again",
        )
    asks, left_out = _chosen(pairs, record.stem)
    return Target(named=reference, spec=own, asks=asks, left_out=left_out, record=record)


def _misfit(own: RunSpec, spec: RunSpec, of_benchmark: bool) -> str | None:
    """Why trained weights cannot be scored on a task: no head for it, or one that knows other classes.

    Of a benchmark a model with a head is scored only on what it was trained on: its head knows nothing else, even
    where two tasks name their classes alike.
    """
    had, needed = models.kind_of(own), models.kind_of(spec)
    if had != needed or (own.task.has_head and own.task.kind != spec.task.kind):
        return (
            f"was trained on '{own.task.name}' ({own.task.kind}) and cannot be scored on '{spec.task.name}' "
            f"({spec.task.kind}): its model has no head for that"
        )
    if spec.task.labels != own.task.labels:
        return (
            f"tells apart {', '.join(own.task.labels)}; '{spec.task.name}' has the classes "
            f"{', '.join(spec.task.labels)}"
        )
    if of_benchmark and own.task.has_head and own.task.name != spec.task.name:
        trained, others = own.task.train, spec.task.train
        if trained is None or others is None or trained.pool != others.pool:
            return f"was trained on '{own.task.name}', and its head knows nothing of '{spec.task.name}'"
    return None
