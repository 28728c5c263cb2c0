"""Which numbers of a record stand for it in lists: its score and the starting model's; what differs in two configs.

Picks and names; computes no statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.cli import units
from peftlab.records.record import Evaluation, Metric, Record
from peftlab.verdicts.columns import flat

_ROLES = ("best", "last")
_PARTS = ("test", "valid")


def of_record(record: Record, *, task: str | None = None, role: str | None = None) -> Evaluation | None:
    """The evaluation that stands for a run: the kept weights on the test rows, else on the validation rows.

    Args:
        record: The run.
        task: Another task than the run's own.
        role: `base` for the starting model, or one of the others; by default what was kept at the end.
    """
    wanted = task or record.task
    for part in _PARTS:
        for one in (role,) if role else _ROLES:
            found = [
                evaluation
                for evaluation in record.evaluations
                if (evaluation.what, evaluation.task, evaluation.part, evaluation.role) == ("task", wanted, part, one)
            ]
            if found:
                return found[-1]
    return None


def of_text(record: Record, *, role: str | None = None) -> Evaluation | None:
    """The loss on general text, of the kept weights or of the role named."""
    wanted = (role,) if role else _ROLES
    found = [one for one in record.evaluations if one.what == "text" and one.role in wanted]
    return found[-1] if found else None


def primary(evaluation: Evaluation) -> tuple[str, Metric] | None:
    """The first metric of an evaluation."""
    return next(iter(evaluation.metrics.items()), None)


def text(metric: Metric | None) -> str:
    """The mean with its standard error."""
    return units.score(metric.mean, metric.standard_error) if metric else units.UNKNOWN


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose values differ; a key that one side lacks stands with `(absent)`.

    Example:
        >>> differences({"a": {"b": 1}}, {"a": {"b": 2}})
        {'a.b': (1, 2)}
    """
    left, right = flat(first), flat(second)
    pairs = {key: (left.get(key, "(absent)"), right.get(key, "(absent)")) for key in {**left, **right}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
