"""`peftlab run`: start the work, draw its events, print its result."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from peftlab.cli import arguments, display, repeating, scores, tables, units
from peftlab.events import Finished
from peftlab.records.record import Evaluation, Record, to_json
from peftlab.records.store import RunStore


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out, as the flags of `peftlab run` say it."""

    clean: bool = False
    rerun: bool = False
    any_environment: bool = False
    resume_from_checkpoint: str | None = None


def run(
    path: str,
    settings: Sequence[str],
    options: RunOptions,
    *,
    folder: str,
    as_json: bool,
    verbose: bool,
    dialect: str | None = None,
    bucket: str | None = None,
) -> None:
    """Train and score one experiment, then print its record or a summary of it."""
    set_up_logging(verbose)
    spec = arguments.load_spec(path, arguments.parse(settings), dialect)
    from peftlab.job import runs, uploading

    store, chosen = RunStore(folder), runs.Options(**vars(options))
    events = runs.events(spec, store, chosen)
    if bucket is not None:
        events = uploading.events(spec, store, chosen, bucket=bucket)
    if int(os.environ.get("RANK", "0")) > 0:  # of several processes, the leader speaks
        for _ in events:
            pass
        return
    results = display.draw(events, verbose=verbose)
    finished = [event for event in results if isinstance(event, Finished)]
    assert finished, "a run ends with Finished"
    if as_json:
        typer.echo(to_json(finished[-1].record))
    else:
        tables.write_pairs(summary(finished[-1].record, store))


def summary(record: Record, store: RunStore) -> dict[str, tables.Cell]:
    """What a run came to, as `name  value` pairs; what was not measured says why."""
    cost = record.cost
    trainable, total = cost.num_trainable_parameters, cost.num_parameters
    lines: dict[str, tables.Cell] = {"run": record.stem, "status": f"{record.status}, {record.category}"}
    lines.update(_scores(record, store))
    lines["training"] = units.duration(cost.seconds.get("train"))
    lines["all phases"] = units.duration(sum(cost.seconds.values())) if cost.seconds else None
    size = units.size((cost.memory_bytes or {}).get("maximum"))
    lines["memory"] = f"{size} ({cost.memory_kind})" if size and cost.memory_kind else size
    if trainable is not None and total is not None:
        lines["trainable"] = f"{trainable:,} of {total:,} parameters ({units.share(trainable, total)})"
    lines["adapter"] = units.size(cost.adapter_bytes)
    if cost.unknown:
        lines["not known"] = "\n".join(f"{name}: {reason}" for name, reason in cost.unknown.items())
    if record.rows.get("notes"):
        lines["note"] = "\n".join(record.rows["notes"])
    lines["record"] = str(store.path_of(record))
    if record.imported_from is not None:
        answers = any(found.folder is not None for found in record.evaluations)
        what = "its answers, graded here" if answers else "its scores alone"
        lines["imported from"] = f"{record.imported_from}: {what}"
    elif record.category == "test" and record.status == "finished":
        again = repeating.command(record)
        lines["category test"] = f"not run on the main branch of a git work tree; there: {again} --rerun"
    return lines


def _scores(record: Record, store: RunStore) -> dict[str, tables.Cell]:
    kept, start = scores.of_record(record), scores.of_record(record, role="base")
    text, text_start = scores.of_text(record), scores.of_text(record, role="base")
    lines: dict[str, tables.Cell] = {"score": _metrics_text(record, kept, store) if kept else None}
    lines["starting model"] = _metrics_text(record, start, store) if start else record.before_reason
    if text:
        before = f"\nstart: {_metrics_text(record, text_start, store)}" if text_start else ""
        lines["general text"] = _metrics_text(record, text, store) + before
    retention: Mapping[str, Any] = record.training.get("retention") or {}
    if retention.get("tasks"):
        lines["general suite"] = _retention_text(retention)
    return lines


def _retention_text(kept: Mapping[str, Any]) -> str:
    """The change on the general suite, then each task with its score before; what was not measured says why."""
    change, count = kept["change"], len(kept["tasks"])
    lines = [] if change is None else [f"{kept['benchmark']}: change {change:+.4f}, mean over {count} tasks"]
    for task, one in kept["tasks"].items():
        lines.append(f"{one['metric']} {units.number(one['after'])} on {task} (start {units.number(one['before'])})")
    return "\n".join([*lines, *([f"left out: {kept['reason']}"] if kept["reason"] else [])])


def _metrics_text(record: Record, evaluation: Evaluation, store: RunStore) -> str:
    """Every metric with its 95 % interval, from the stored outcomes of the items."""
    from peftlab.verdicts import failing, outcomes

    folder = store.evaluation_folder(record, evaluation)
    where = f" on {evaluation.task} {evaluation.part}" + (", part of the data" if evaluation.partial else "")
    lines = []
    for name, metric in evaluation.metrics.items():
        found = outcomes.score(outcomes.read(folder, evaluation, name), [metric])
        bounds = f" ({units.bounds(found.low, found.high)})" if found.low is not None else ""
        lines.append(f"{name} {units.number(metric.mean)}{bounds}, n {metric.n or units.UNKNOWN}{where}")
    return "\n".join([*lines, *filter(None, [failing.said([evaluation])])])


def set_up_logging(verbose: bool) -> None:
    """peftlab's messages go to stderr; other packages keep their own settings."""
    logger = logging.getLogger("peftlab")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
