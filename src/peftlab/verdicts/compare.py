"""Which of some runs is better, and what may be said about it: one table per task, with intervals, tests and claims.

Scores come with an interval, every pair with a paired test on the same items, and the p values of one table are
adjusted together. With one or two seeds a claim is about these runs; only three seeds or more in each arm allow one
about the methods. Runs nothing, and does not look for other differences between two runs than the model, the grader and
the generation settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from peftlab import clusters
from peftlab.errors import UserError
from peftlab.records.record import Record
from peftlab.records.store import RunStore
from peftlab.verdicts.arms import Arm, BareModel, Base, FolderOf, LeftOut, Reader, Scored, by_task, superseded, unique
from peftlab.verdicts.outcomes import shared
from peftlab.verdicts.statistics import Difference, holm, paired_difference, paired_over_seeds

LEVEL = 0.05
SEEDS_FOR_A_METHOD = 3
ALL_PAIRS = 12
"""Up to so many arms every pair is tested; above, each arm against the best arm and its bar."""

Kind = Literal["arms", "base", "bar"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two arms, or an arm and a bare model, on the same items.

    Attributes:
        kind: `arms`; `base`: the model that the runs started from; `bar`: the best bare model.
        a: Label of the arm.
        b: Label of the other arm or the bare model.
        difference: Score of a minus score of b; known even when the two are not paired.
        p_adjusted: After Holm's correction over the table.
        num_items: Paired items; None: not paired, so there is no test.
        level: What the claim is about: these `runs`, or the `method` in general.
        winner: Label of the better one, when a difference is shown.
    """

    kind: Kind
    a: str
    b: str
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    test: str | None = None
    num_items: int | None = None
    level: Literal["runs", "method"]
    winner: str | None = None
    claim: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """Everything that was scored on one task with one metric.

    Attributes:
        arms: Best first.
        bases: Bare models, best first.
        bars: Of each model the key of its best bare score: what an arm of that model has to beat.
        baselines: Scores that need no model, by name.
        notes: How the pairs were chosen and their p values adjusted, and what else a reader should know.
    """

    task: str
    part: str
    metric: str
    direction: Literal["higher", "lower"]
    arms: tuple[Arm, ...]
    bases: tuple[Base, ...]
    bars: tuple[str, ...]
    pairs: tuple[Pair, ...]
    baselines: Mapping[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One table per task, and the records that entered none.

    Attributes:
        statuses: How many runs of each status there were.
    """

    tables: tuple[Table, ...]
    left_out: tuple[LeftOut, ...]
    statuses: Mapping[str, int]


def compare(
    records: Sequence[Record],
    folder_of: FolderOf | None = None,
    *,
    metric: str | None = None,
    part: str = "test",
    bases: Sequence[BareModel] = (),
) -> Comparison:
    """Compare finished runs, and word what their scores allow to be said.

    Args:
        records: Any; those that are not finished are named in `left_out`, and imported ones that another stands for.
        folder_of: Where the outcomes of a record's evaluation lie; None: as in the results folder `results`.
        metric: None: the primary metric of each task.
        part: Which rows: `test` or `valid`.
        bases: Further evaluations of bare models (few-shot, chat template): the best one becomes the bar.

    Raises:
        UserError: No record has that metric.

    Example:
        >>> compare([]).tables
        ()
    """
    found = unique(records)
    tables, left_out = by_task(found, metric, part)
    folder_of = folder_of or RunStore("results").evaluation_folder
    counts: dict[str, int] = {}
    for record in found:
        counts[record.status] = counts.get(record.status, 0) + 1
    return Comparison(
        tables=tuple(_table(task, part, name, rows, folder_of, bases) for task, (name, rows) in tables.items()),
        left_out=(*left_out, *superseded(records)),
        statuses=dict(sorted(counts.items())),
    )


# ------------------------------------------------------------------------------------------------------- a table


def _table(
    task: str, part: str, metric: str, rows: Sequence[Scored], folder_of: FolderOf, extra: Sequence[BareModel]
) -> Table:
    directions = {evaluation.metrics[metric].direction for _, evaluation in rows}
    if len(directions) > 1:
        raise UserError(f"{task}: runs disagree on whether a higher {metric} is better", fix="compare them apart")
    direction = directions.pop()
    sign = 1 if direction == "higher" else -1
    reader = Reader(metric, folder_of)
    arms = sorted(reader.arms(rows), key=lambda arm: _rank(arm.score.mean, sign))
    _read_bases(reader, task, part, metric, rows, extra)
    bases = sorted(reader.bases.values(), key=lambda base: _rank(base.score.mean, sign))
    bars = {base.model: base for base in reversed(bases)}
    pairs = _adjusted(_pairs(arms, bars), arms, sign)
    baselines = {name: value for _, evaluation in rows for name, value in evaluation.baselines.items()}
    return Table(
        task=task,
        part=part,
        metric=metric,
        direction=direction,
        arms=tuple(arms),
        bases=tuple(bases),
        bars=tuple(base.key for base in bars.values()),
        pairs=tuple(pairs),
        baselines=baselines,
        notes=tuple(_notes(arms, bases, bars, pairs)),
    )


def _read_bases(
    reader: Reader, task: str, part: str, metric: str, rows: Sequence[Scored], extra: Sequence[BareModel]
) -> None:
    """Bare models on these rows, under every mode of the grader: the best of all is what an arm has to beat.

    The modes of a grader share the beginning of their names; other metrics measure something else.
    """
    items = {evaluation.items for _, evaluation in rows}
    for one in extra:
        evaluation = one.evaluation
        if evaluation.items not in items:  # another draw of test rows is another bar
            continue
        same_rows = (evaluation.what, evaluation.task, evaluation.part) == ("task", task, part)
        if same_rows and metric in evaluation.metrics:
            for name in evaluation.metrics:
                if name == metric or name.startswith(f"{metric}_") or metric.startswith(f"{name}_"):
                    reader.base(evaluation, one.folder, metric=name)


def _rank(mean: float, sign: int) -> tuple[bool, float]:
    """Best first, NaN last."""
    return (math.isnan(mean), 0.0 if math.isnan(mean) else -sign * mean)


_Draft = tuple[Kind, Arm, Arm | Base]


def _pairs(arms: Sequence[Arm], bars: Mapping[str, Base]) -> list[_Draft]:
    drafts: list[_Draft] = []
    for index, arm in enumerate(arms):
        if len(arms) <= ALL_PAIRS:
            drafts.extend(("arms", arm, other) for other in arms[index + 1 :])
        elif index:
            drafts.append(("arms", arms[0], arm))
    for arm in arms:
        bar = bars.get(arm.model)
        if bar is not None:
            drafts.append(("bar", arm, bar))
        if arm.base is not None and arm.base is not bar and len(arms) <= ALL_PAIRS:
            drafts.append(("base", arm, arm.base))
    return drafts


def _adjusted(drafts: Sequence[_Draft], arms: Sequence[Arm], sign: int) -> list[Pair]:
    tests = [_test(first, second) for _, first, second in drafts]
    p_values = [None if isinstance(test, str) else test.p for test in tests]
    chosen = sum(kind != "arms" for kind, _, _ in drafts) + len(arms) * (len(arms) - 1) // 2
    family = chosen if len(arms) > ALL_PAIRS else None
    adjusted = holm(p_values, family=family)
    return [_pair(draft, test, p, sign) for draft, test, p in zip(drafts, tests, adjusted, strict=True)]


def _level(first: Arm, second: Arm | Base) -> Literal["runs", "method"]:
    seeds = len(first.seeds) if isinstance(second, Base) else min(len(first.seeds), len(second.seeds))
    return "method" if seeds >= SEEDS_FOR_A_METHOD else "runs"


def _test(first: Arm, second: Arm | Base) -> Difference | str:
    """The paired test of two rows of a table, or why there is none."""
    a, b = first.outcomes, second.outcomes
    for row, outcomes in ((first, a), (second, b)):
        if outcomes.missing is not None:
            return f"{row.label}: {outcomes.missing}"
    assert a.matrix is not None and b.matrix is not None
    if a.items is None or a.items != b.items:
        return "scored on different items"
    if _level(first, second) == "method":
        return paired_over_seeds(a.matrix, b.matrix, seedless_b=isinstance(second, Base), clusters=shared((a, b)))
    return paired_difference(a.matrix.mean(axis=0), b.matrix.mean(axis=0), clusters=shared((a, b)))


def _pair(draft: _Draft, test: Difference | str, p_adjusted: float | None, sign: int) -> Pair:
    kind, first, second = draft
    level, notes = _level(first, second), _confounders(first, second)
    if isinstance(test, str):
        return Pair(
            kind=kind,
            a=first.label,
            b=second.label,
            difference=first.score.mean - second.score.mean,
            level=level,
            claim=f"not paired, so not tested ({test})",
            notes=notes,
        )
    winner = None
    if p_adjusted is not None and p_adjusted < LEVEL:
        winner = first if sign * test.mean > 0 else second
    return Pair(
        kind=kind,
        a=first.label,
        b=second.label,
        difference=test.mean,
        low=test.low,
        high=test.high,
        p=test.p,
        p_adjusted=p_adjusted,
        test=test.test,
        num_items=test.n,
        level=level,
        winner=winner.label if winner is not None else None,
        claim=_claim(first, second, winner, level),
        notes=notes,
    )


def _confounders(first: Arm, second: Arm | Base) -> tuple[str, ...]:
    """What else differs between two arms, of the few things that are looked at here."""
    if isinstance(second, Base):
        return ()
    notes = [] if first.model == second.model else ["different base models"]
    if first.trained_on != second.trained_on:
        notes.append(f"trained on different tasks ({first.trained_on}, {second.trained_on})")
    names = [*first.settings, *(name for name in second.settings if name not in first.settings)]
    unlike = [name for name in names if first.settings.get(name) != second.settings.get(name)]
    if unlike:
        notes.append(f"scored under different settings ({', '.join(unlike)})")
    return tuple(notes)


# ------------------------------------------------------------------------------------------------------- wording


def _claim(first: Arm, second: Arm | Base, winner: Arm | Base | None, level: Literal["runs", "method"]) -> str:
    both = f"{_name(first, level)} and {_name(second, level)}"
    if winner is None:
        return f"no difference shown between {both}"
    loser = second if winner is first else first
    if level == "runs":
        verb = "are" if isinstance(winner, Arm) and len(winner.seeds) > 1 else "is"
        return f"{_name(winner, level)} {verb} better than {_name(loser, level)} on these items"
    seeds = " and ".join(str(len(row.seeds)) for row in (winner, loser) if isinstance(row, Arm))
    return f"{_name(winner, level)} beats {_name(loser, level)} ({seeds} seeds)"


def _name(row: Arm | Base, level: Literal["runs", "method"]) -> str:
    if isinstance(row, Base):
        return f"the bare model ({row.label})"
    if level == "method":
        return f"method {row.method} as in {row.label}"
    return f"run {row.label}" if len(row.seeds) == 1 else f"the {len(row.seeds)} runs of {row.label}"


def _notes(arms: Sequence[Arm], bases: Sequence[Base], bars: Mapping[str, Base], pairs: Sequence[Pair]) -> list[str]:
    notes = []
    tested = sum(pair.p is not None for pair in pairs)
    if tested:
        notes.append(
            f"p values are adjusted together (Holm) over the {tested} tested pairs of this table; intervals are 95 % "
            "each, not adjusted"
        )
    if len(arms) > ALL_PAIRS:
        notes.append(
            f"{len(arms)} arms: each is compared with the best arm ({arms[0].label}) and the bar only; because the "
            "best was chosen by these scores, the adjustment counts every pair of arms"
        )
    if any(pair.level == "runs" for pair in pairs):
        notes.append(
            f"with fewer than {SEEDS_FOR_A_METHOD} seeds in an arm a claim is about these runs, not about methods"
        )
    for model, bar in bars.items():
        count = sum(base.model == model for base in bases)
        if count > 1:
            notes.append(
                f"the bar is the best of {count} bare-model scores, {bar.label}; it was chosen on these items, which "
                "favours the bare model: beating it is the harder for it"
            )
    if any(arm.partial for arm in arms) or any(base.partial for base in bases):
        notes.append("some rows were scored or trained on a part of the data set they name: not the benchmark's result")
    codes = shared([*(arm.outcomes for arm in arms), *(base.outcomes for base in bases)])
    if codes is not None:
        notes.append(
            f"the {codes.size} items come from {clusters.count(codes)} sources, and items of one source are not "
            "independent: intervals and tests are over sources"
        )
    if any(arm.imported_from is not None and arm.outcomes.matrix is None for arm in arms):
        notes.append("imported runs without outcomes per item are shown, never paired or tested")
    if any("test" in arm.category for arm in arms):
        notes.append("some arms hold runs of category test")
    return notes
