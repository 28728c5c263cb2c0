"""A finished run's record, put together from what its slot holds. Computes sums, judges nothing, writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftlab import measure
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.records.record import Cost, Evaluation, Record
from peftlab.records.store import RunStore, Slot, thin
from peftlab.rows import texts
from peftlab.scores import samples
from peftlab.scores import wanted as wanting
from peftlab.scores.wanted import Wanted


def assemble(spec: RunSpec, slot: Slot, store: RunStore, *, extra: Sequence[tuple[RunSpec, Wanted]] = ()) -> Record:
    """The record of a trained run with all its evaluations, the starting model's among them.

    Args:
        spec: The run as asked for.
        slot: What it wrote.
        store: Where evaluations of bare models lie.
        extra: Further evaluations (with the spec they were made under) whose bare-model side belongs in the record.
    """
    trained = slot.get("trained")
    wanted = wanting.wanted_evaluations(spec, step=trained["step"], role=trained["role"])
    starts = [one.key(made, "") for made, one in [*((spec, one) for one in wanted), *extra] if one.step is None]
    evaluations = [found for found in map(store.base_evaluation, dict.fromkeys(starts)) if found is not None]
    for found in evaluations:
        wanting.same_start(found, (slot.get("model") or {}).get("revision"))
    known = {found.key for found in evaluations}
    evaluations += [found for key, found in slot.evaluations().items() if key not in known]
    on_the_way = [
        Wanted(what="task", part="valid", role="step", step=int(found.checkpoint))
        for found in evaluations
        if found.role == "step"
    ]
    own = {one.key(spec, slot.spec.train_key) for one in [*wanted, *on_the_way]}
    _same_items(evaluations, own)
    rows = {**(slot.get("rows") or {}), "fingerprints": slot.get("fingerprints"), **(slot.get("tokens") or {})}
    curve = slot.curve()
    retention = _retention([found for found in evaluations if found.key in own], spec)
    return Record(
        status="finished",
        category=slot.category,
        key=slot.spec.train_key,
        arm=slot.spec.arm,
        experiment=slot.spec.experiment,
        method=slot.spec.method,
        task=slot.spec.task.name,
        seed=slot.spec.seed,
        created_at=slot.created_at,
        identity=slot.spec.identity(),
        spec=spec.model_dump(mode="json") if spec.task == slot.spec.task else slot.spec.model_dump(mode="json"),
        evaluations=tuple(sorted(evaluations, key=lambda found: _order(found, own))),
        before_reason=wanting.no_start(slot.spec),
        curve=thin(curve),
        rows=rows,
        training={**_training(slot, curve), "forgetting": _forgetting(evaluations, spec), "retention": retention},
        cost=_cost(slot, curve),
        provenance={
            **(slot.get("environment") or {}),
            "git": slot.get("git"),
            "model": slot.get("model"),
            "adapter_config": slot.get("adapter_config"),
            "adapter_sha256": slot.get("adapter")["sha256"],
        },
    )


def _same_items(evaluations: Sequence[Evaluation], own: set[str]) -> None:
    """The starting model and the trained one were scored on the same items, or there is no "before"."""
    own_ones = [found for found in evaluations if found.key in own]
    items = {(found.what, found.task, found.part): found.items for found in own_ones if found.role != "base"}
    for found in own_ones:
        if found.role == "base" and items.get((found.what, found.task, found.part), found.items) != found.items:
            rows = (
                f"another text '{found.task}'" if found.what == "text" else f"other {found.part} rows of '{found.task}'"
            )
            raise UserError(
                f"the starting model was scored on {rows} than this run",
                fix=f"pin the data set's revision, and move the stored evaluation {found.folder} away",
            )


def _order(evaluation: Evaluation, own: set[str]) -> tuple[int, int, bool, str]:
    """By step; of several under one role those of the run's own settings last, which is where readers look."""
    step = -1 if evaluation.checkpoint == "base" else int(evaluation.checkpoint)
    return (step, int(evaluation.what != "task"), evaluation.key in own, evaluation.key)


def _forgetting(evaluations: Sequence[Evaluation], spec: RunSpec) -> dict[str, Any]:
    """Change of the loss on general text against the starting model, in nats a token; or why it is unknown."""
    found = {one.role: one.metrics["loss"].mean for one in evaluations if one.what == "text"}
    after = found.get("best", found.get("last"))
    if after is not None and "base" in found:
        return {"text": spec.data.forgetting, "change": after - found["base"], "reason": None}
    text = texts.for_forgetting(spec.data.forgetting)
    reason = (
        text if isinstance(text, str) else "not asked for: the task generates no text, or train.evaluate is not all"
    )
    return {"text": spec.data.forgetting, "change": None, "reason": reason}


def _retention(evaluations: Sequence[Evaluation], spec: RunSpec) -> dict[str, Any]:
    """Score on a general suite before and after training, and its change as a mean over the tasks; or why unknown."""
    asked = samples.asked(spec) if spec.train.evaluate == "all" else ()
    if not asked:
        reason = "not asked for: the model has a head of its own, or train.evaluate is not all"
        reason = "data.retention is null" if spec.data.retention is None else reason
        return {"benchmark": spec.data.retention, "tasks": {}, "change": None, "reason": reason}
    tasks: dict[str, dict[str, Any]] = {}
    reasons: list[str] = []
    for one in asked:
        name, metric = one.task.name, one.metric
        found = {e.role: e.metrics for e in evaluations if (e.what, e.task) == ("sample", name)}
        after = found.get("best", found.get("last"))
        if after is not None and "base" in found:
            tasks[name] = {"metric": metric, "before": found["base"][metric].mean, "after": after[metric].mean}
        else:
            reasons.append(samples.unavailable(one.task) or f"{name} was not scored")
    changes = [one["after"] - one["before"] for one in tasks.values()]
    return {
        "benchmark": asked[0].suite,
        "tasks": tasks,
        "change": None if reasons else sum(changes) / len(changes),
        "reason": "; ".join(dict.fromkeys(reasons)) or None,
    }


def _training(slot: Slot, curve: Sequence[dict[str, Any]]) -> dict[str, Any]:
    trained = slot.get("trained")
    return {
        **trained,
        "stopped_early": slot.get("stopped_early"),
        "epochs": curve[-1]["epoch"] if curve else None,
        "final_loss": curve[-1]["loss"] if curve else None,
        "partial": slot.get("partial"),
    }


def _cost(slot: Slot, curve: Sequence[dict[str, Any]]) -> Cost:
    samples = [row["memory_bytes"] for row in curve if row.get("memory_bytes")]
    note = slot.get("peak_note")
    counts = slot.get("counts")
    seconds = {**slot.seconds, "train": sum(row["seconds"] for row in curve)}
    return Cost(
        seconds={name: round(value, 3) for name, value in sorted(seconds.items())},
        num_parts=slot.num_parts,
        train_tokens=sum(row["tokens"] for row in curve),
        label_tokens=sum(row["label_tokens"] for row in curve),
        memory_bytes=measure.summarise_memory(
            samples, slot.get("peak_bytes"), before_model=slot.get("memory_before_model")
        ),
        memory_kind=measure.memory_kind(),
        num_trainable_parameters=counts["trainable"],
        num_parameters=counts["total"],
        adapter_bytes=slot.get("adapter")["bytes"],
        shared_machine=bool(slot.get("shared_machine")),
        unknown={"memory_peak": note} if note else {},
    )
