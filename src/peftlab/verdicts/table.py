"""A comparison as plain sheets of text, for whoever draws them: a terminal, a page, a spreadsheet.

Formats numbers; draws nothing and computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peftlab.verdicts.arms import Arm, Base
from peftlab.verdicts.compare import Comparison, Pair, Table
from peftlab.verdicts.statistics import Interval

UNKNOWN = "-"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A title, columns, rows of as many cells, and notes to stand below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def sheets(comparison: Comparison) -> list[Sheet]:
    """Per task the scores and the pairs; at the end the runs that were left out."""
    found = [sheet for table in comparison.tables for sheet in (scores(table), pairs(table)) if sheet.rows]
    if comparison.left_out:
        rows = tuple((one.stem, one.status, one.reason) for one in comparison.left_out)
        counts = ", ".join(f"{count} {status}" for status, count in comparison.statuses.items())
        found.append(Sheet(title=f"Left out (runs: {counts})", columns=("run", "status", "reason"), rows=rows))
    return found


def scores(table: Table) -> Sheet:
    """A line per arm and per bare model, best first, with costs; memory above the level before the model was loaded."""
    measured = ("experiment", "method", "seeds", "items", table.metric, "95 % interval", "before")
    kept = any(arm.retention is not None for arm in table.arms)  # a column of nothing tells nothing
    columns = (*measured, *(["retention"] * kept), "train s", "added GiB", "trainable", "adapter MiB", "notes")
    rows = [*(_arm(arm, table, kept) for arm in table.arms), *(_base(base, table, kept) for base in table.bases)]
    notes = [f"{name}: {number(value)}" for name, value in table.baselines.items()]
    better = "higher is better" if table.direction == "higher" else "lower is better"
    title = f"{table.task}, {table.part} rows: {table.metric} ({better})"
    return Sheet(title=title, columns=columns, rows=tuple(rows), notes=tuple(notes))


def pairs(table: Table) -> Sheet:
    """A line per pair, with what may be said about it."""
    columns = ("a", "b", "a - b", "95 % interval", "p", "p (Holm)", "paired items", "claim")
    return Sheet(
        title=f"{table.task}, {table.part} rows: differences",
        columns=columns,
        rows=tuple(_pair(pair) for pair in table.pairs),
        notes=table.notes,
    )


def _arm(arm: Arm, table: Table, kept: bool) -> tuple[str, ...]:
    costs = arm.costs
    notes = [*arm.notes, *(["part of the data"] if arm.partial else []), *(["shared machine"] * costs.shared_machine)]
    if arm.trained_on != table.task:
        notes.append(f"trained on {arm.trained_on}")
    return (
        arm.label,
        arm.method,
        _seeds(arm.seeds),
        UNKNOWN if arm.num_items is None else str(arm.num_items),
        number(arm.score.mean),
        interval(arm.score.low, arm.score.high),
        _with_interval(arm.base.score) if arm.base else UNKNOWN,
        *([UNKNOWN if arm.retention is None else f"{arm.retention:+.4f}"] * kept),
        number(costs.train_seconds, 1),
        number(_divided(costs.peak_memory_bytes, 2**30), 2),
        UNKNOWN if costs.num_trainable_parameters is None else f"{costs.num_trainable_parameters:,.0f}",
        number(_divided(costs.adapter_bytes, 2**20), 2),
        "; ".join(notes),
    )


def _base(base: Base, table: Table, kept: bool) -> tuple[str, ...]:
    notes = [*(["the bar"] if base.key in table.bars else []), *(["part of the data"] if base.partial else [])]
    notes.extend([base.outcomes.missing] if base.outcomes.missing else [])
    score = (number(base.score.mean), interval(base.score.low, base.score.high))
    unknown = [UNKNOWN] * (5 + kept)
    return (base.label, "none", UNKNOWN, str(base.score.n or UNKNOWN), *score, *unknown, "; ".join(notes))


def _pair(pair: Pair) -> tuple[str, ...]:
    return (
        pair.a,
        pair.b,
        f"{pair.difference:+.4f}",
        interval(pair.low, pair.high, signed=True),
        p_value(pair.p),
        p_value(pair.p_adjusted),
        UNKNOWN if pair.num_items is None else str(pair.num_items),
        "; ".join([pair.claim, *pair.notes]),
    )


# ------------------------------------------------------------------------------------------------------ numbers


def number(value: float | None, digits: int = 4) -> str:
    """A number with that many decimals, or a dash."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    """Both bounds, or a dash."""
    if low is None or high is None:
        return UNKNOWN
    return f"{low:+.4f} to {high:+.4f}" if signed else f"{low:.4f} to {high:.4f}"


def p_value(p: float | None) -> str:
    """Four decimals; below them, only that it is smaller."""
    if p is None:
        return UNKNOWN
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def _with_interval(score: Interval) -> str:
    return f"{number(score.mean)} ({interval(score.low, score.high)})"


def _divided(value: float | None, unit: int) -> float | None:
    return None if value is None else value / unit


def _seeds(seeds: Sequence[int]) -> str:
    """`0-4` for a run of numbers, else all of them up to six, else their count."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return _listed(seeds) if len(seeds) <= 6 else f"{len(seeds)} seeds"


def _listed(values: Iterable[int]) -> str:
    return ", ".join(str(value) for value in values)
