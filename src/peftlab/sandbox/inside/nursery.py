"""Forks a fresh process for each program; never sees a program, a test or a secret.

It has imported everything that a child will need. What it forks from must be clean, because a child has a copy of all
its memory. So programs, tests and secrets go to the boxes by pipes whose ends pass through here unread.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from typing import Any

from . import box, view

PRELOADED = """
array ast bisect cmath collections copy dataclasses datetime decimal enum fractions functools hashlib heapq itertools
json math operator random re statistics string time traceback typing
"""
"""What programs of such tasks import; a forked child has it at once."""


def main() -> None:
    """Serve orders until the other end closes. The arguments are a descriptor and the plan, as JSON."""
    control = socket.socket(fileno=int(sys.argv[1]))
    plan = json.loads(sys.argv[2])
    for name in PRELOADED.split():
        __import__(name)
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    if plan["way"] == "kernel":
        view.enter(plan["shown"], plan["hidden"])
    control.send(b'{"ready": true}')
    _Nursery(control, plan, proc).serve()


class _Nursery:
    def __init__(self, control: socket.socket, plan: dict[str, Any], proc: int) -> None:
        self.control, self.plan, self.proc = control, plan, proc
        self.boxes: dict[int, int] = {}
        self.folders: dict[int, str] = {}

    def serve(self) -> None:
        told, tell = os.pipe()
        os.set_blocking(tell, False)
        os.set_blocking(told, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        while True:
            ready, _, _ = select.select([self.control.fileno(), told], [], [])
            if told in ready:
                with suppress(BlockingIOError):
                    os.read(told, 4096)
                self.collect()
            if self.control.fileno() in ready and not self.order():
                break
        for pid in list(self.boxes):
            self.end(pid)
        while self.boxes:
            self.collect(wait=True)

    def order(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self.control, 1 << 16, 8)
        if not message:
            return False
        asked = json.loads(message)
        if asked["do"] == "end":
            for pid, number in list(self.boxes.items()):
                if number == asked["box"]:
                    self.end(pid)
            return True
        order = {**self.plan, **asked}
        if self.plan["way"] == "none":
            order["work"] = tempfile.mkdtemp(prefix="peftlab-program-")
        pid = os.fork()
        if pid == 0:
            box.outer(self.plan["way"], order, descriptors, self.proc)
        for one in descriptors:
            os.close(one)
        self.boxes[pid] = asked["box"]
        if "work" in order:
            self.folders[pid] = order["work"]
        return True

    def end(self, pid: int) -> None:
        # bubblewrap takes its processes along when killed; ours is told, and ends its own
        os.kill(pid, signal.SIGKILL if self.plan["way"] == "bubblewrap" else signal.SIGTERM)

    def collect(self, *, wait: bool = False) -> None:
        while self.boxes:
            pid, status = os.waitpid(-1, 0 if wait else os.WNOHANG)
            if not pid:
                return
            number = self.boxes.pop(pid)
            if pid in self.folders:
                shutil.rmtree(self.folders.pop(pid), ignore_errors=True)
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
            with suppress(OSError):  # nobody may be left to hear it
                self.control.send(json.dumps({"box": number, "code": code}).encode())
