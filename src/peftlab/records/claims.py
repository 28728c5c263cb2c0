"""One writer per key: an OS file lock held for the life of the process, and a sign of life for other hosts.

The kernel frees the lock at any death, so a free lock means that nobody on this host writes. Network file systems may
not carry locks between hosts; there the owner file, rewritten every half minute, decides.
Knows nothing of what is written under a claim.
"""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from peftlab.errors import UserError
from peftlab.records.atomic import write_atomic

Clock = Callable[[], float]

BEAT_SECONDS = 30.0
FRESH_SECONDS = 300.0
"""An owner on another host whose last sign of life is younger than this is believed to be alive."""

_PATIENCE_SECONDS = 0.2
"""A reader that looks whether a lock is held holds it itself for microseconds; that is no other run."""

_OWNER_SUFFIX = ".owner.json"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a claim. `since` is for people; `beat` is the last sign of life in seconds since 1970."""

    key: str
    stem: str
    pid: int
    host: str
    since: str
    beat: float


def timestamp(seconds: float) -> str:
    """A moment as ISO 8601 text in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


@contextmanager
def held(folder: Path, key: str, *, stem: str, clock: Clock) -> Iterator[None]:
    """Hold the claim on `key` during the block.

    Raises:
        UserError: Another process holds it.
    """
    from filelock import FileLock, Timeout  # imported late: it loads asyncio, and readers need none of it

    _make(folder)
    path = folder / f"{key}{_OWNER_SUFFIX}"
    # A generator may be closed by another thread than the one that opened it, hence not thread-local.
    lock = FileLock(folder / f"{key}.lock", thread_local=False)
    try:
        lock.acquire(timeout=_PATIENCE_SECONDS, poll_interval=0.01)
    except Timeout:
        raise _busy(stem, read_owner(path), path) from None
    try:
        other = read_owner(path)
        if other is not None and _lives_elsewhere(other, clock()):
            raise _busy(stem, other, path)
        now = clock()
        mine = Owner(key=key, stem=stem, pid=os.getpid(), host=platform.node(), since=timestamp(now), beat=now)
        with _heartbeat(path, mine, clock):
            yield
    finally:
        lock.release()


@contextmanager
def waited(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` during the block, after waiting for whoever has it."""
    from filelock import FileLock

    _make(folder)
    with FileLock(folder / f"{name}.lock", thread_local=False):
        yield


def _make(folder: Path) -> None:
    """The folder of the locks; where it cannot be written, no result can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write to {folder}")
    except OSError as error:
        raise UserError(
            f"cannot write to the results folder {folder.parent}: {error}",
            fix="choose a folder that can be written, with --results",
        ) from None


def owners(folder: Path, *, clock: Clock) -> list[Owner]:
    """Those who hold a claim now, by stem; files of dead owners are skipped."""
    if not folder.is_dir():
        return []
    found = [read_owner(folder / name) for name in os.listdir(folder) if name.endswith(_OWNER_SUFFIX)]
    alive = [owner for owner in found if owner is not None and is_held(folder, owner.key, clock=clock)]
    return sorted(alive, key=lambda owner: owner.stem)


def is_held(folder: Path, key: str, *, clock: Clock) -> bool:
    """Whether someone holds the claim on `key`; creates no file."""
    from filelock import FileLock, Timeout

    path = folder / f"{key}.lock"
    if not path.exists():
        return False
    owner = read_owner(folder / f"{key}{_OWNER_SUFFIX}")
    try:
        with FileLock(path, thread_local=False).acquire(timeout=0):
            return owner is not None and _lives_elsewhere(owner, clock())
    except Timeout:
        return True
    except OSError:
        # Somebody else's folder that may only be read: the sign of life is all there is.
        return owner is not None and clock() - owner.beat < FRESH_SECONDS


def read_owner(path: Path) -> Owner | None:
    """The owner file, or None when there is none that can be read: it only ever adds to what the lock says."""
    try:
        data = json.loads(path.read_bytes())
        texts = {name: str(data[name]) for name in ("key", "stem", "host", "since")}
        return Owner(**texts, pid=int(data["pid"]), beat=float(data["beat"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _lives_elsewhere(owner: Owner, now: float) -> bool:
    return owner.host != platform.node() and now - owner.beat < FRESH_SECONDS


@contextmanager
def _heartbeat(path: Path, mine: Owner, clock: Clock) -> Iterator[None]:
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS):
            try:
                _write_owner(path, replace(mine, beat=clock()))
            except OSError:
                continue  # a full disk: the run itself will hear of it, and the next beat tries again

    _write_owner(path, mine)
    thread = threading.Thread(target=beat, name=f"heartbeat {mine.stem}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2.0)  # at interpreter exit a daemon thread never answers, hence the limit
        path.unlink(missing_ok=True)


def _write_owner(path: Path, owner: Owner) -> None:
    write_atomic(path, json.dumps(asdict(owner)), durable=False)


def _busy(stem: str, owner: Owner | None, path: Path) -> UserError:
    if owner is None:
        return UserError(f"{stem} is being run by another process", fix="wait for it, or stop it")
    fix = f"wait for it, or stop it: kill {owner.pid} on {owner.host}"
    if owner.host != platform.node():
        fix += f"; if that process is surely gone, delete {path}"
    return UserError(
        f"{stem} is being run by another process (pid {owner.pid} on {owner.host}, since {owner.since})", fix=fix
    )
