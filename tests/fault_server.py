"""Runs the command line in forked processes that share one import of torch, each with a fault of the machine.

`Server` starts it; as a program it reads one JSON command a line and answers with a process id or an exit code. It does
nothing when imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOT_POSSIBLE = 77
"""Exit code of a child that may not make the fault here, such as mount a small disk."""

_NEW_NAMESPACE, _NEW_USER = 0x00020000, 0x10000000
_PRIVATE, _REMOUNT = 1 << 18 | 1 << 14, 1 << 5
_PATIENCE_SECONDS = 30.0


class Server:
    """Starts commands and waits for them; their words lie in files."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, root: Path, *words: str | Path, **faults: Any) -> int:
        """Start a command in `root`; returns its process id."""
        return self._ask({"root": str(root), "words": [str(word) for word in words], "faults": faults})

    def wait(self, process: int) -> int:
        """The exit code, negative for a signal."""
        return self._ask({"wait": process})

    def run(self, root: Path, *words: str | Path, **faults: Any) -> int:
        """Start a command and wait for it."""
        return self.wait(self.start(root, *words, **faults))

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)

    def _ask(self, command: dict[str, Any]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def words_of(root: Path, process: int) -> str:
    """What a command wrote."""
    return (root / f"words-{process}").read_text()


def until(path: Path) -> None:
    """Wait until a file is there."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.005)


# ------------------------------------------------------------------------------------------------------------- faults


def _wrap(module: Any, name: str, before: Callable[[], None], *, after: bool = False) -> None:
    original = getattr(module, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if after:
            result = original(*args, **kwargs)
            before()
            return result
        before()
        return original(*args, **kwargs)

    setattr(module, name, wrapped)


def _pause(at: str) -> None:
    """Stop at a moment, leave the mark `paused`, and go on when the mark `go` is there."""
    from peftlab.loop import training
    from peftlab.modelling import adapting

    def pause() -> None:
        Path("paused").touch()
        until(Path("go"))

    module, name = {"setup": (adapting, "adapt"), "step": (training, "_update")}[at]
    _wrap(module, name, pause)


def _small_disk(folder: str, kilobytes: int) -> None:
    """Mount a small file system that only this process sees."""
    library = ctypes.CDLL(None, use_errno=True)
    flags = _NEW_NAMESPACE if os.geteuid() == 0 else _NEW_NAMESPACE | _NEW_USER
    Path(folder).mkdir()
    done = library.unshare(flags) == 0 and library.mount(b"none", b"/", None, _PRIVATE, None) == 0
    if not done or library.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, f"size={kilobytes}k".encode()) != 0:
        os._exit(NOT_POSSIBLE)


def _more_room(folder: str) -> None:
    """Enlarge the small file system."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.mount(b"tmpfs", folder.encode(), b"tmpfs", _REMOUNT, b"size=100m") != 0:
        os._exit(NOT_POSSIBLE)


def _fill() -> None:
    """Fill the disk to the last byte, just before the final record is written."""
    try:
        with open("disk/ballast", "wb") as ballast:
            while True:
                ballast.write(b"0" * 512)
                ballast.flush()
    except OSError as error:
        assert error.errno == errno.ENOSPC


def _little_memory(megabytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _child(command: dict[str, Any]) -> int:
    """Carry out one command under its faults; with a small disk once more when there is room again."""
    from peftlab.cli import main
    from peftlab.job import runs

    faults = command["faults"]
    os.chdir(command["root"])
    words = os.open(f"words-{os.getpid()}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(words, 1)
    os.dup2(words, 2)
    if "pause" in faults:
        _pause(faults["pause"])
    if "file_kilobytes" in faults:
        size = faults["file_kilobytes"] * 1024
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    if "memory_megabytes" in faults:
        _little_memory(faults["memory_megabytes"])
    if "disk_kilobytes" not in faults:
        return main(command["words"])
    _small_disk("disk", faults["disk_kilobytes"])
    if faults.get("fill"):
        _wrap(runs, "assemble", _fill, after=True)
    code = main(command["words"])
    shutil.copytree("disk", "disk-when-full")
    _more_room("disk")
    with contextlib.suppress(FileNotFoundError):
        os.unlink("disk/ballast")
    if faults.get("fill"):
        setattr(runs, "assemble", lambda *args, **more: _assemble(*args, **more))  # noqa: B010 - as it was
    again = main(command["words"])
    shutil.copytree("disk", "disk-afterwards")
    return 10 * code + again


def _assemble(*args: Any, **more: Any) -> Any:
    from peftlab.job.assembly import assemble

    return assemble(*args, **more)


def _serve() -> None:
    import signal

    import torch

    import fork_runner

    # a shell that starts jobs in the background makes them deaf to Ctrl-C; here it is what is tested
    signal.signal(signal.SIGINT, signal.default_int_handler)

    torch.set_num_threads(1)
    fork_runner._warm_up()
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            _, status = os.waitpid(command["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)  # renews the thread pool after the fork, before several threads want it
                code = _child(command)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)


if __name__ == "__main__":
    _serve()
