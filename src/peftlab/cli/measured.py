"""The measured table of methods (`methods/measured.yaml`), as `peftlab list methods` shows it; no model library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from peftlab.cli import units
from peftlab.config.settings import read_yaml

_FILE = Path(__file__).parents[1] / "methods" / "measured.yaml"
MODELS = {"causal": ("smollm2", "tiny-llama"), "classify": ("minilm", "tiny-bert")}
"""For each kind of task the models of the table, the real one first: where it has no column, the tiny one speaks."""

ABILITIES = ("tasks", "precisions", "reload", "merge", "start", "off", "ckpt", "needs", "trainable", "of")
NOT_MEASURED = (None,) * len(ABILITIES)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured: by row, for each model and precision a verdict of every invariant; and with which versions."""

    versions: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@cache
def table() -> Measured:
    """The table as it was written by benchmarks/methods.py; empty where there is none."""
    if not _FILE.is_file():
        return Measured()
    content = read_yaml(_FILE)
    return Measured(versions=content.get("versions", {}), rows=content.get("rows", {}))


def what() -> str:
    """What the columns of abilities mean, and what they were measured with."""
    versions = ", ".join(f"{name} {version}" for name, version in table().versions.items())
    return (
        "tasks and precisions: it trains there and comes back from its file; reload, merge, start as the base, off as "
        "the base: =, or the largest difference of a logit; ckpt: gradient checkpointing; of: the model that these and "
        f"the parameters are of. All of it: docs/methods.md. With {versions}"
    )


def abilities() -> Mapping[str, tuple[str | None, ...]]:
    """The cells of each method that was measured, by its name."""
    found: dict[str, tuple[str | None, ...]] = {}
    for name, row in table().rows.items():
        method = row.get("method") if row.get("of") else name
        if method is not None and method not in found:
            found[method] = _cells(row)
    return found


def _cells(row: Mapping[str, Any]) -> tuple[str | None, ...]:
    """What a row says: of its real columns, or of the tiny ones in their place."""
    shown = {
        task: next((f"{one} float32" for one in models if f"{one} float32" in row), None)
        for task, models in MODELS.items()
    }
    tasks = [task for task, column in shown.items() if column is not None and works(row[column])]
    good = [key for key, entry in row.items() if isinstance(entry, dict) and works(entry)]
    precisions = sorted({key.partition(" ")[2] for key in good}, key=lambda one: (one != "float32", one))
    column = next((shown[task] for task in tasks), None) or shown["causal"] or shown["classify"]
    entry = row[column] if column is not None else {}
    words = [_word(entry.get(key)) for key in ("reload", "merge", "start", "disable", "gradient checkpointing")]
    return (
        " ".join(tasks) or "none",
        " ".join(precisions) or "none",
        *words,
        ", ".join(row.get("needs", ())) or None,
        units.count(entry.get("trainable")),
        column.partition(" ")[0] if column is not None else None,
    )


def works(entry: Mapping[str, Any]) -> bool:
    """Whether a method trains in a column, with a falling loss, and comes back from its file."""
    return all(_holds(entry.get(key)) for key in ("gradients", "loss", "frozen", "reload"))


def _holds(value: Any) -> bool:
    return isinstance(value, float) or value in ("=", "stated", "-")


def _word(value: Any) -> str | None:
    if value is None:
        return None
    return f"{value:.0e}" if isinstance(value, float) else {"refused": "no", "stated": "on purpose"}.get(value, value)
