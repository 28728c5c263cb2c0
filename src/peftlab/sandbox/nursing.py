"""This side of a nursery: starts it, orders boxes, hears how they ended; not what the boxes say."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from peftlab.sandbox import ways
from peftlab.sandbox.limits import Limits

_PATIENCE_SECONDS = 60.0
"""For a nursery to be ready: it takes a tenth of a second, or longer on a machine under load."""


class NurseryError(Exception):
    """The nursery could not be started, or is no more."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a box ended: its exit code as a shell says it, and the CPU time of what ran in it (None: unknown)."""

    code: int
    cpu_seconds: float | None


class Nursery:
    """One process that forks boxes. One program at a time uses it."""

    def __init__(self, way: ways.Way, without: Sequence[str] = ()) -> None:
        self.way = way
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the nursery
        self._boxes = 0
        command = [ways.interpreter(), *ways.FLAGS, "-c", ways.START.format("nursery"), str(ways.HERE)]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*command, str(theirs.fileno()), json.dumps(ways.plan(way, without))],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._said,
                    env=ways.ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                self.socket.close()
                self._said.close()
                raise NurseryError(f"{command[0]}: {error}") from None
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.hear(time.monotonic() + _PATIENCE_SECONDS)
            undo.pop_all()

    def start(self, role: str, limits: Limits, descriptors: Sequence[int]) -> int:
        """Order a box; its ends of the pipes are closed here.

        Returns:
            Its number.
        """
        self._boxes += 1
        order = {"do": "start", "box": self._boxes, "role": role, "limits": asdict(limits)}
        try:
            socket.send_fds(self.socket, [json.dumps(order).encode()], list(descriptors))
        except OSError:
            raise NurseryError(self._last_words()) from None
        return self._boxes

    def end(self, box: int) -> None:
        """Kill a box and all that is in it."""
        with contextlib.suppress(OSError):  # a nursery that is no more took its boxes along
            self.socket.send(json.dumps({"do": "end", "box": box}).encode())

    def hear(self, deadline: float) -> dict[str, Any]:
        """The next message.

        Raises:
            NurseryError: None came, and none will.
        """
        self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            message = self.socket.recv(1 << 16)
        except TimeoutError:
            raise NurseryError("it does not answer") from None
        except OSError:
            message = b""
        if not message:
            raise NurseryError(self._last_words())
        told: dict[str, Any] = json.loads(message)
        return told

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with code {self._process.poll()}"

    def kill(self) -> None:
        """End it at once. Its boxes end with it, because the kernel tells them."""
        self._process.kill()

    def close(self) -> None:
        """End it, and every box with it."""
        self.socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()


@contextlib.contextmanager
def nursery(way: ways.Way) -> Iterator[Nursery]:
    """A nursery for the length of a block."""
    one = Nursery(way)
    try:
        yield one
    finally:
        one.close()
