"""What a finished run leaves in the folder that `save.output_dir` names, for programs that know the library's files.

Adapter (for the base as it was, whatever it was trained on; or the whole model) and tokenizer as `from_pretrained`
reads them, `trainer_state.json` as
`transformers.TrainerState` reads it, and the figures as `*_results.json`, which is what `transformers.Trainer` writes.
The record stays the result: nothing here is read back, and nothing is computed that the record does not say.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from peftlab.config.spec import RunSpec
from peftlab.digest import digest
from peftlab.errors import UserError
from peftlab.modelling import models
from peftlab.records.atomic import write_atomic
from peftlab.records.payload import PLAIN
from peftlab.records.record import Evaluation, Record, to_json

MARK = "peftlab.json"
"""Says which run the other files are of."""

_ELSEWHERE = "make it possible, or name another folder: save.output_dir=..."
_PREFIXES = {"valid": "eval", "test": "test"}


def check(spec: RunSpec, *, apart: Iterable[Path]) -> None:
    """See that the run may and can write where it is told to; writes nothing that stays.

    Args:
        spec: The run.
        apart: Folders of results, which must not be mixed up with it.

    Raises:
        UserError: The folder holds files of somebody else, is or holds or lies in one of results, or cannot be made.
    """
    folder = _folder(spec)
    if folder is None:
        return
    try:
        mixed = [str(place) for place in apart if _is_within(folder, place) or _is_within(place, folder)]
        if mixed:
            raise UserError(
                f"save.output_dir = {folder}: that is {mixed[0]}, or around or inside it, where results are kept",
                fix="name a folder beside it, such as save.output_dir=outputs/mine",
            )
        _refuse_strangers(spec, folder)
        with TemporaryFile(dir=_nearest(folder)):
            pass
    except (OSError, ValueError) as error:
        raise UserError(f"save.output_dir = {folder}: no files can be written there: {error}", fix=_ELSEWHERE) from None


def _folder(spec: RunSpec) -> Path | None:
    return None if spec.save.output_dir is None else Path(os.path.expanduser(spec.save.output_dir))


def _is_within(inner: Path, outer: Path) -> bool:
    return Path(os.path.realpath(inner)).is_relative_to(os.path.realpath(outer))


def _nearest(folder: Path) -> Path:
    """The folder, or what is there of the way to it."""
    for place in (folder, *folder.parents):
        try:
            os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        return place
    return Path.cwd()


def _refuse_strangers(spec: RunSpec, folder: Path) -> None:
    if folder.is_file() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"save.output_dir = {folder}: there is a file of that name", fix="name another folder")
    inside = sorted(os.listdir(folder)) if folder.is_dir() else []
    owner = _owner(folder)
    if owner is None and inside:
        raise UserError(
            f"save.output_dir = {folder}: the folder holds files that are not of this run: {', '.join(inside[:5])}",
            fix="name another folder with save.output_dir=..., or move them away",
        )
    if owner is not None and owner.get("key") != spec.train_key:
        raise UserError(
            f"save.output_dir = {folder}: the folder holds another run, {owner.get('run')}; this one is {spec.stem}",
            fix="name another folder with save.output_dir=..., or move that one away",
        )


def write(spec: RunSpec, record: Record, curve: Sequence[Mapping[str, Any]], payload: Path) -> None:
    """Put a finished run's files into its output folder; each appears whole, in place of an older one of this run.

    Args:
        spec: The run.
        record: Its finished record.
        curve: The whole step log.
        payload: Its folder among the results; the weights in it may have been cleaned.

    Raises:
        UserError: The folder holds files of somebody else, or cannot be written.
    """
    folder = _folder(spec)
    if folder is None:
        return
    try:
        _refuse_strangers(spec, folder)
        _fill(folder, spec, record, curve, payload)
    except OSError as error:
        raise UserError(
            f"save.output_dir = {folder}: {error}; the run itself is finished, {record.stem} is kept", fix=_ELSEWHERE
        ) from None


def _fill(folder: Path, spec: RunSpec, record: Record, curve: Sequence[Mapping[str, Any]], payload: Path) -> None:
    plain = payload / PLAIN  # the other form is for a base that nobody else has
    weights = plain if plain.is_dir() else payload / "adapter"
    mark = {"run": record.stem, "key": record.key, "record": digest(to_json(record)), "weights": weights.is_dir()}
    if (_owner(folder) or {}) == mark:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / MARK, _text({**mark, "record": None}))  # from here on the folder is this run's
    if weights.is_dir():
        _put(weights, folder)
    with TemporaryDirectory(dir=folder, prefix=".tokenizer-") as temporary:
        models.load_tokenizer(spec.model).save_pretrained(temporary)
        _put(Path(temporary), folder)
    results = _results(record, curve)
    for name, values in results.items():
        write_atomic(folder / f"{name}_results.json", _text(values))
    write_atomic(
        folder / "all_results.json", _text({name: v for found in results.values() for name, v in found.items()})
    )
    write_atomic(folder / "trainer_state.json", _text(trainer_state(spec, record, curve)))
    write_atomic(folder / MARK, _text(mark))


def _owner(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _put(source: Path, folder: Path) -> None:
    """Copy files, each beside its place and then into it."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.writing")
            shutil.copyfile(path, beside)
            os.replace(beside, target)


def _text(values: Mapping[str, Any]) -> str:
    """JSON as the library writes it, a diverged loss as NaN: its readers know no other form."""
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


# ---------------------------------------------------------------------------------------------------------- figures


def trainer_state(spec: RunSpec, record: Record, curve: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of `transformers.TrainerState` (transformers/trainer_callback.py) that a run knows."""
    last = curve[-1] if curve else {}
    history: list[tuple[int, int, dict[str, Any]]] = []
    for row in curve:
        names = ("loss", "grad_norm", "learning_rate", "epoch", "step")
        history.append((row["step"], 0, {name: row[name] for name in names if name in row}))
    epochs = {row["step"]: row.get("epoch") for row in curve}
    for step, found in _scored(record):
        history.append((step, 1, {**_figures(found), "step": step, "epoch": epochs.get(step)}))
    best = _best(spec, record)
    return {
        "global_step": last.get("step", 0),
        "max_steps": record.training.get("last_step") or last.get("step", 0),
        "epoch": last.get("epoch"),
        "num_train_epochs": spec.train.num_train_epochs or last.get("epoch"),
        "train_batch_size": spec.batch.per_device_train_batch_size,
        "num_input_tokens_seen": sum(row.get("tokens", 0) for row in curve),
        "logging_steps": 1,
        "eval_steps": spec.train.eval_steps,
        "save_steps": spec.save.save_steps,
        "best_metric": best[1] if best else None,
        "best_global_step": best[0] if best else None,
        "best_model_checkpoint": None,
        "log_history": [entry for _, _, entry in sorted(history, key=lambda one: one[:2])],
    }


def _best(spec: RunSpec, record: Record) -> tuple[int, float] | None:
    """Step and score of the weights that were kept for their validation score."""
    if record.training.get("role") != "best":
        return None
    step = record.training["step"]
    name = spec.train.metric_for_best_model or spec.task.primary_metric
    for scored, found in _scored(record):
        if found.part == "valid" and scored == step and name in found.metrics:
            return step, found.metrics[name].mean
    return None


def _scored(record: Record) -> list[tuple[int, Evaluation]]:
    """What the run itself would have scored: its own task, and of one part and step what has its own settings."""
    own = record.spec.get("generation")
    found = [one for one in record.evaluations if (one.what, one.task) == ("task", record.task)]
    steps = [(one.checkpoint, one) for one in found if isinstance(one.checkpoint, int)]
    steps.sort(key=lambda one: (one[0], one[1].settings.get("generation") == own))
    return list({(one.part, step): (step, one) for step, one in steps}.values())


def _figures(found: Evaluation) -> dict[str, Any]:
    prefix = _PREFIXES.get(found.part, found.part)
    more = {name: value for name, value in found.notes.items() if isinstance(value, float)}
    scores = {**more, **{name: metric.mean for name, metric in found.metrics.items()}}
    return {f"{prefix}_{name}": value for name, value in scores.items()} | {f"{prefix}_samples": found.num_items}


def _results(record: Record, curve: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`train`, and `eval` and `test` where validation and test rows were scored, the last weights of each."""
    losses = [row["loss"] for row in curve]
    train = {
        "epoch": record.training.get("epochs"),
        "train_loss": sum(losses) / len(losses) if losses else None,
        "train_runtime": record.cost.seconds.get("train"),
        "train_samples": (record.rows.get("parts") or {}).get("train", {}).get("rows"),
        "train_tokens": record.cost.train_tokens,
    }
    results = {"train": {name: value for name, value in train.items() if value is not None}}
    for part, prefix in _PREFIXES.items():
        scored = [(step, one) for step, one in _scored(record) if one.part == part]
        kept = [one for step, one in scored if step == record.training.get("step")]
        if scored:
            results[prefix] = _figures(kept[-1] if kept else scored[-1][1])
    return results
