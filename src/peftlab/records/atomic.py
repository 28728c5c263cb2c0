"""Files and folders that are there whole or not at all, at whatever moment the process dies.

Knows nothing of runs. A name that starts with a dot is not yet, or no longer, part of the results.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftlab.errors import UserError

MAX_NAME_BYTES = 200
"""File systems allow 255; the rest is for suffixes and the names of temporary files."""

_NEW, _OLD, _GONE = ".new-", ".old-", ".gone-"

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def safe_name(name: str) -> str:
    """`name` itself, when it names one file inside a folder and nothing hidden or outside.

    Raises:
        UserError: It is empty, hidden, too long, or would lead elsewhere.
    """
    if not name or name.startswith(".") or any(sign in name for sign in "/\\\0"):
        raise UserError(f"'{name}' cannot name a result", fix="use letters, digits and . _ + = - only")
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise UserError(f"'{name}' is too long to name a result", fix="shorten the folder's or the task's name")
    return name


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a whole file: readers see the old content or the new, also after a crash.

    Args:
        path: The file; its folder exists.
        content: Text is written as UTF-8.
        durable: Wait until the disk has it. Not worth its milliseconds for a sign of life.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_error(error: Exception, path: Path) -> OSError:
    """A failure to write that a library reports in a type of its own, as the OSError that it is."""
    found = _OS_ERROR.search(str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, f"{os.strerror(number)} ({error})", str(path))


def read_text(path: Path, *, fix: str = "move it away") -> str:
    """The text of a file that was written by this package.

    Raises:
        UserError: It is not UTF-8, so something else wrote or damaged it.
    """
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is not UTF-8 text", fix=fix) from None


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill; it becomes `target`, in place of an older one, only when the block ends well.

    One writer at a time. What a kill leaves behind, `mend` puts in order.
    """
    temporary = target.with_name(_NEW + target.name)
    old = target.with_name(_OLD + target.name)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
        if target.exists():
            os.rename(target, old)
        os.rename(temporary, target)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
    if old.exists():
        shutil.rmtree(old)


def discard(folder: Path) -> None:
    """Delete a folder so that half of it is never taken for the whole; a link is removed, not followed."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        gone = folder.with_name(_GONE + folder.name)
        if gone.exists():
            shutil.rmtree(gone)
        os.rename(folder, gone)
        shutil.rmtree(gone)


def mend(parent: Path, *, about: str = "") -> None:
    """Finish or undo what a killed process left half done in `parent`, where the name contains `about`.

    For the one writer of those names; another's unfinished work looks the same.
    """
    for name in os.listdir(parent) if parent.is_dir() else ():
        if not name.startswith(".") or about not in name:
            continue
        path = parent / name
        whole = parent / name.removeprefix(_OLD)
        if name.startswith(_OLD) and not whole.exists():
            os.rename(path, whole)
        elif name.startswith((_NEW, _OLD, _GONE)):
            shutil.rmtree(path)
        elif name.endswith(".tmp"):
            path.unlink()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
