"""What a record and its folder know of a run, finished or not, for whoever writes it in another format.

Gathers and refuses; knows no format's names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftlab.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a record and its folder know, whether the run finished or not.

    Attributes:
        curve: Every step, or None when only a part of the curve is left.
        memory: `average`, `percentile_99`, `maximum` and `before_model` in bytes; {} when unknown.
    """

    record: Mapping[str, Any]
    spec: Mapping[str, Any]
    environment: Mapping[str, Any]
    git: Mapping[str, Any]
    model: Mapping[str, Any]
    adapter_config: Mapping[str, Any] | None
    counts: Mapping[str, Any]
    rows: Mapping[str, Any]
    memory: Mapping[str, Any]
    curve: Sequence[Mapping[str, Any]] | None
    seconds: Mapping[str, float]

    def get(self, name: str) -> Any:
        """A setting of the spec by its dotted name; None where the spec is older than the setting."""
        group, _, key = name.partition(".")
        return (self.spec.get(group) or {}).get(key)

    def scored(self, part: str, role: str) -> list[Mapping[str, Any]]:
        """The evaluations on a part of the run's own task, in the record's order: of several the last counts."""
        wanted = ("task", self.record["task"], part, role)
        found = self.record["evaluations"]
        return [one for one in found if (one["what"], one["task"], one["part"], one["role"]) == wanted]

    def needed(self, field: str, value: Any) -> Any:
        """`value`, which `field` is filled with; an error when it is not known."""
        if value is not None:
            return value
        if self.finished:
            raise self.cannot(field, "the record does not hold it", "run it again with --rerun")
        raise self.cannot(field, "the run ended before it was known", "run it again: it goes on")

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return bool(self.record["status"] == "finished")

    def cannot(self, field: str, reason: str, fix: str) -> UserError:
        """The error of a field that cannot be filled."""
        return UserError(f"{self.record['key'][:12]} ({self.record['experiment']}): '{field}': {reason}", fix=fix)


def gathered(record: Mapping[str, Any], facts: Mapping[str, Any]) -> Run:
    """The facts of a finished run from its record, those of another from what its folder holds."""
    state: Mapping[str, Any] = facts.get("state") or {}
    if record["provenance"].get("imported_from"):
        raise UserError(
            f"{record['key'][:12]} ({record['experiment']}) was imported from {record['provenance']['imported_from']}",
            fix="use the file that it was imported from",
        )
    finished = record["status"] == "finished"
    provenance = record["provenance"] if finished else state.get("environment") or {}
    kept = record["provenance"] if finished else state
    cost = record["cost"]
    counts = {"trainable": cost.get("num_trainable_parameters"), "total": cost.get("num_parameters")}
    curve = list(facts.get("curve") or [])
    last = record["training"].get("last_step")
    whole = bool(curve) and (last is None or len(curve) == last)
    return Run(
        record=record,
        spec=record["spec"],
        environment=provenance,
        git=kept.get("git") or {},
        model=kept.get("model") or {},
        adapter_config=kept.get("adapter_config"),
        counts=counts if finished else state.get("counts") or {},
        rows=record["rows"] if finished else {**(state.get("rows") or {}), **(state.get("tokens") or {})},
        memory=(cost.get("memory_bytes") or {}) if finished else _memory_so_far(curve, state),
        curve=curve if whole else None,
        seconds=cost["seconds"] if finished else {**cost["seconds"], "train": sum(row["seconds"] for row in curve)},
    )


def _memory_so_far(curve: Sequence[Mapping[str, Any]], state: Mapping[str, Any]) -> dict[str, float]:
    samples = [row["memory_bytes"] for row in curve if row.get("memory_bytes")]
    if not samples or state.get("memory_before_model") is None:
        return {}
    import numpy as np

    return {
        "average": float(np.mean(samples)),
        "percentile_99": float(np.percentile(samples, 99)),
        "maximum": float(max(*samples, state.get("peak_bytes") or 0)),
        "before_model": float(state["memory_before_model"]),
    }
