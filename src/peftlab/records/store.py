"""Runs on disk: claim one, go on with it, finish it, list and find them. One writer per key; every write is atomic.

Folders: `results/` (finished, category main), `temporary_results/` (finished, test), `cancelled_results/` (everything
unfinished). Each run is `<stem>.json` beside its payload `<stem>/`. Where a record lies is never how it is read.
Computes no result and judges none.
"""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftlab.config.folders import YAML_SUFFIXES
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError, nearest
from peftlab.records import claims, room
from peftlab.records.atomic import mend, safe_name, write_atomic
from peftlab.records.claims import Clock, Owner
from peftlab.records.payload import (
    EVALUATIONS,
    PENDING,
    PROGRESS,
    WEIGHTS,
    Places,
    Progress,
    first_record,
    read_evaluation,
    read_progress,
    read_record,
    settle,
    thin,
    unfinished,
)
from peftlab.records.record import Category, Evaluation, Record, to_json
from peftlab.records.slot import BaseSlot, Slot

__all__ = ["BaseSlot", "RunStore", "Slot", "thin", "write_atomic"]

_REPLACED = "replaced.json"
"""The old record inside its payload, once `rerun` has moved it there: then the payload is no result any more."""

_PAYLOAD_NAME = re.compile(r"[^.].*--[0-9a-f]{12}")
_KEY_PREFIX = re.compile(r"[0-9a-f]{4,16}")


class RunStore:
    """The results folder and its two siblings.

    Attributes:
        problems: (path, message) of what the last `records()` could not read.

    Example:
        >>> store = RunStore("results")
        >>> store.places.cancelled.name
        'cancelled_results'
    """

    def __init__(self, results: Path | str = "results") -> None:
        main = Path(results)
        if main.name in ("", ".."):
            main = main.resolve()
        self.places = Places(
            main=main,
            test=main.with_name(f"temporary_{main.name}"),
            cancelled=main.with_name(f"cancelled_{main.name}"),
        )
        self.problems: list[tuple[Path, str]] = []
        self._locks = main / ".locks"
        self._bases = main / "base"
        self._elsewhere: dict[tuple[str, str, str], Path] = {}

    # ---------------------------------------------------------------------------------------------------- writing

    @contextmanager
    def claim(
        self, spec: RunSpec, *, category: Category, rerun: bool = False, clock: Clock = time.time
    ) -> Iterator[Slot]:
        """Become the only writer of a run until the block ends; an ending other than `finish` is recorded.

        Args:
            spec: The run.
            category: What the caller's branch makes of it.
            rerun: Move a finished result aside and start afresh.
            clock: Seconds since 1970.

        Raises:
            UserError: Another process runs it, or a file of its earlier parts is damaged.
        """
        stem = safe_name(spec.stem)
        with claims.held(self._locks, spec.train_key, stem=stem, clock=clock):
            slot = self._open(spec, category, rerun=rerun, now=clock())
            try:
                with room.advised(spec, trains=True):
                    yield slot
            except BaseException as error:
                try:
                    slot.end(error)
                except Exception as problem:  # noqa: BLE001 - what went wrong in the run matters more
                    error.add_note(f"how the run ended could not be recorded: {problem}")
                raise
            slot.end(None)

    def _open(self, spec: RunSpec, category: Category, *, rerun: bool, now: float) -> Slot:
        run = first_record(spec, category=category, created_at=claims.timestamp(now))
        self._recover(run.key)
        path = self._finished(run.key)
        if path is not None and rerun:
            _set_aside(path)
            path = None
        if path is not None:
            return self._reopen(spec, path, run)
        return self._resume(spec, run)

    def _reopen(self, spec: RunSpec, path: Path, run: Record) -> Slot:
        """A slot of a finished run: further evaluations may be added to it."""
        record = _of_key(path, read_record(path), run.key)
        if spec.experiment not in (record.experiment, *record.aliases):
            record = record.model_copy(update={"aliases": (*record.aliases, spec.experiment)})
            write_atomic(path, to_json(record))
        payload = path.with_suffix("")
        _mend_payload(payload)
        run = _continued(run, record, category=record.category)
        if (payload / PROGRESS).is_file():
            progress = read_progress(payload).model_copy(update={"run": run})
        else:
            progress = Progress(run=run, num_parts=record.cost.num_parts, seconds=record.cost.seconds)
        return Slot(spec, payload, progress, places=self.places, finished=record)

    def _resume(self, spec: RunSpec, run: Record) -> Slot:
        """A slot of an unfinished run, or of one that never ran."""
        payloads, endings = self._named_after(run.key, self.places.cancelled)
        if len(payloads) > 1:
            raise _both(*payloads[:2])
        previous = _of_key(endings[0], read_record(endings[0]), run.key) if endings else None
        stem = (payloads or [path.with_suffix("") for path in endings] or [Path(spec.stem)])[0].name
        payload = self.places.cancelled / stem
        progress = Progress(run=run)
        category = run.category
        if payload.is_dir():
            _mend_payload(payload)
            names = os.listdir(payload)
            if names:
                progress = read_progress(payload)
                _of_key(payload / PROGRESS, progress.run, run.key)
                previous = previous or unfinished(payload, progress, status="killed")
                # Work done outside the main branch stays so; a part that did none decides nothing.
                if names != [PROGRESS] and progress.run.category == "test":
                    category = "test"
            else:
                payload.rmdir()
        progress = progress.model_copy(update={"run": _continued(run, previous, category=category)})
        slot = Slot(spec, payload, progress, places=self.places, previous=previous)
        slot.begin()
        return slot

    def _recover(self, key: str) -> None:
        """Complete what a kill interrupted in `finish` or in moving an old result aside."""
        for folder in self.places.all():
            mend(folder, about=key[:12])
            payloads, _ = self._named_after(key, folder)
            for payload in payloads:
                if payload.with_name(f"{payload.name}.json").exists() and folder != self.places.cancelled:
                    (payload / PENDING).unlink(missing_ok=True)
                elif (payload / _REPLACED).exists():
                    os.rename(payload, _free_name(payload))
                elif (payload / PENDING).exists():
                    settle(self.places, payload, read_record(payload / PENDING))
                elif folder != self.places.cancelled:
                    # A payload whose record was moved away: its parts are still good.
                    back = self.places.cancelled / payload.name
                    if back.exists():
                        raise _both(payload, back)
                    back.parent.mkdir(parents=True, exist_ok=True)
                    os.rename(payload, back)

    def _finished(self, key: str) -> Path | None:
        for folder in (self.places.main, self.places.test):
            _, records = self._named_after(key, folder)
            if records:
                return records[0]
        return None

    def _named_after(self, key: str, folder: Path) -> tuple[list[Path], list[Path]]:
        """Payloads and record files of a key."""
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        payloads = [folder / name for name in names if name.endswith(f"--{key[:12]}")]
        return payloads, [folder / name for name in names if name.endswith(f"--{key[:12]}.json")]

    # ------------------------------------------------------------------------------------------------ bare models

    @contextmanager
    def base_slot(self, key: str, name: str) -> Iterator[BaseSlot]:
        """Become the only writer of a bare model's evaluation; waits while another run computes it."""
        with claims.waited(self._locks, f"base-{key}"):
            mend(self._bases, about=f"-{key[:12]}")
            folder = self._base_folder(key) or self._bases / safe_name(f"{name}-{key[:12]}")
            yield BaseSlot(folder, key, shown=f"base/{folder.name}")

    def base_evaluation(self, key: str) -> Evaluation | None:
        """A bare model's evaluation, or None when no run has stored it."""
        folder = self._base_folder(key)
        return read_evaluation(folder) if folder is not None else None

    def base_evaluations(self) -> list[tuple[Evaluation, Path]]:
        """All stored evaluations of bare models, each with its folder."""
        names = sorted(os.listdir(self._bases)) if self._bases.is_dir() else []
        folders = [self._bases / name for name in names if not name.startswith(".")]
        found = [(read_evaluation(folder), folder) for folder in folders]
        return [(evaluation, folder) for evaluation, folder in found if evaluation is not None]

    def _base_folder(self, key: str) -> Path | None:
        names = os.listdir(self._bases) if self._bases.is_dir() else []
        found = [name for name in names if name.endswith(f"-{key[:12]}") and not name.startswith(".")]
        return self._bases / min(found) if found else None

    # ---------------------------------------------------------------------------------------------------- reading

    def records(self) -> list[Record]:
        """All runs but those being run now, the finished first; files that cannot be read are listed in `problems`.

        A payload without an ending that nobody holds shows as a run that was killed.
        """
        self.problems = []
        found: dict[Path, list[Record]] = {}
        for folder in self.places.all():
            names = set(os.listdir(folder)) if folder.is_dir() else set()
            stems = {
                name.removesuffix(".json") for name in names if name.endswith(".json") and not name.startswith(".")
            }
            lost = {name for name in names - stems if _PAYLOAD_NAME.fullmatch(name)}
            with _collector_paused():
                read = [self._read(folder, stem) for stem in sorted(stems | lost)]
            found[folder] = [record for record in read if record is not None]
        return [*found[self.places.main], *found[self.places.test], *found[self.places.cancelled]]

    def running(self) -> list[Owner]:
        """The runs that a process holds now, on this host or, by its sign of life, on another."""
        return claims.owners(self._locks, clock=time.time)

    def find(self, reference: str) -> list[Record]:
        """The runs that a word on the command line means.

        Args:
            reference: Path of a record or of its payload; the beginning of a key (4 digits or more); an experiment's
                folder or name, which stands for all its finished runs.

        Raises:
            UserError: It means nothing, or more than one thing.
        """
        path = Path(reference)
        for file in (path, path.with_name(f"{path.name}.json")) if path.name else ():
            if file.suffix == ".json" and file.is_file():
                return [self._placed(read_record(file), file)]
        records = self.records()
        name = "/".join(path.resolve().parts[-2:]) if reference and path.is_dir() else reference
        if path.suffix in YAML_SUFFIXES and path.is_file():
            name = f"{path.resolve().parent.name}/{path.stem}"
        runs = [record for record in records if _is_of(record, name)]
        prefix = reference if _KEY_PREFIX.fullmatch(reference) else None
        keyed = [record for record in records if record.stem == path.name or (prefix and record.key.startswith(prefix))]
        if len({record.key for record in keyed}) + len({record.experiment for record in runs}) > 1:
            meant = sorted({f"{record.key} ({record.experiment})" for record in [*keyed, *runs]})
            raise UserError(
                f"'{reference}' is ambiguous: {', '.join(meant[:10])}", fix="give more of the key or the name"
            )
        if keyed:
            return keyed[:1]
        finished = [record for record in runs if record.status == "finished"]
        if not finished:
            raise self._nothing(reference, name, records, runs)
        return finished

    def _nothing(self, reference: str, name: str, records: list[Record], runs: list[Record]) -> UserError:
        if runs:
            states = sorted({f"seed {record.seed}: {record.status}" for record in runs})
            return UserError(f"'{reference}' has no finished run ({', '.join(states)})", fix="run it again: it goes on")
        guess = nearest(name, {record.experiment for record in records})
        fix = f"did you mean '{guess}'?" if guess else "list what there is: peftlab results"
        unread = f"; not readable: {', '.join(str(path) for path, _ in self.problems[:5])}" if self.problems else ""
        return UserError(f"no run '{reference}' in {self.places.main} and its siblings{unread}", fix=fix)

    def path_of(self, record: Record) -> Path:
        """The file of a record."""
        known = self._elsewhere.get((record.key, record.status, record.category))
        return known or self.places.of(record) / f"{safe_name(record.stem)}.json"

    def folder_of(self, record: Record) -> Path:
        """The payload of a record; it need not exist."""
        return self.path_of(record).with_suffix("")

    def evaluation_folder(self, record: Record, evaluation: Evaluation) -> Path | None:
        """Where samples and outcomes of an evaluation lie, or None when nothing was stored."""
        if evaluation.folder is None:
            return None
        inside = Path(evaluation.folder)
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(f"the record {record.stem} names a folder outside: {inside}", fix="do not use this record")
        return (self.places.main if inside.parts[0] == "base" else self.folder_of(record)) / inside

    def _read(self, folder: Path, stem: str) -> Record | None:
        path = folder / f"{stem}.json"
        try:
            try:
                record = read_record(path)
            except FileNotFoundError:
                payload = folder / stem
                if not payload.is_dir() or all(name.startswith(".") for name in os.listdir(payload)):
                    return None  # it finished and moved since the folder was listed, or it was killed before it began
                progress = read_progress(payload)
                if claims.is_held(self._locks, progress.run.key, clock=time.time):
                    return None
                record = unfinished(payload, progress, status="killed")
        except (UserError, OSError) as error:
            self.problems.append((path, str(error)))
            return None
        return self._placed(record, path)

    def _placed(self, record: Record, path: Path) -> Record:
        """Remember where a record lies that does not lie where it belongs."""
        name = (record.key, record.status, record.category)
        if path.parent == self.places.of(record) and path.name == f"{record.stem}.json":
            self._elsewhere.pop(name, None)
        else:
            self._elsewhere[name] = path
        return record


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Records hold no cycles, but each collection would walk all that were read before: half the time of a listing."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def _is_of(record: Record, name: str) -> bool:
    """Whether the record belongs to the experiment `method/name`, or `name` alone."""
    return any(name in (known, known.partition("/")[2]) for known in (record.experiment, *record.aliases))


def _continued(run: Record, previous: Record | None, *, category: Category) -> Record:
    """`run` under the name that its first part had."""
    if previous is None:
        return run
    names = dict.fromkeys((*previous.aliases, run.experiment))
    names.pop(previous.experiment, None)
    update = {"experiment": previous.experiment, "task": previous.task, "created_at": previous.created_at}
    return run.model_copy(update={**update, "aliases": tuple(names), "category": category})


def _of_key(path: Path, record: Record, key: str) -> Record:
    if record.key != key:
        raise UserError(f"{path} is named after the run {key} but holds {record.key}", fix="move it away")
    safe_name(record.stem)
    return record


def _both(first: Path, second: Path) -> UserError:
    return UserError(f"{first} and {second} both hold this run", fix="move one of the two away")


def _mend_payload(payload: Path) -> None:
    for folder in (payload, *(payload / name for name in (EVALUATIONS, *WEIGHTS))):
        mend(folder)


def _set_aside(path: Path) -> None:
    """Keep an old result under another name. The first rename decides: `_recover` repeats the second."""
    payload = path.with_suffix("")
    payload.mkdir(exist_ok=True)
    os.rename(path, payload / _REPLACED)
    os.rename(payload, _free_name(payload))


def _free_name(payload: Path) -> Path:
    number = 1
    while payload.with_name(f"{payload.name}.replaced-{number}").exists():
        number += 1
    return payload.with_name(f"{payload.name}.replaced-{number}")
