"""Asks a child process whether two expressions are equal, and does not wait for ever.

One child answers all questions of this process. A question may take `SECONDS` of the child's processor time, so that
the verdict does not depend on how busy the machine is; then the child ends, and the next question gets a new one.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from peftlab.errors import UserError

SECONDS = 5.0
"""Processor time for one question."""
PATIENCE = 120.0
"""Seconds by the clock after which a child that computes nothing is given up."""
Trouble = Literal["timed_out", "failed"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether they are equal, the answer as it was read, and why there is no verdict (which counts as unequal)."""

    equal: bool
    answer: str | None = None
    trouble: Trouble | None = None


def check() -> None:
    """Raise a `UserError` when math-verify is not installed."""
    try:
        importlib.metadata.version("math-verify")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "symbolic equality of answers needs math-verify, which is not installed", fix="pip install 'peftlab[math]'"
        ) from None


@lru_cache(maxsize=4096)
def verify(gold: str, answer: str, *, whole: bool = False) -> Verdict:
    """math-verify's verdict; with `whole`, `answer` is a text that it finds the answer in by itself."""
    return _asked({"ask": "verify", "gold": gold, "answer": answer, "whole": whole})


@lru_cache(maxsize=4096)
def symbolic(left: str, right: str) -> Verdict:
    """Whether two LaTeX expressions have a difference of 0, or values within one part in a thousand."""
    return _asked({"ask": "symbolic", "left": left, "right": right})


# ---------------------------------------------------------------------------------------------------- the child

_lock = threading.Lock()
_children: dict[int, subprocess.Popen[bytes]] = {}
"""This process's child by this process's id: a forked process must not read from its parent's pipe."""


def _asked(question: Mapping[str, Any]) -> Verdict:
    with _lock:
        child = _children.get(os.getpid())
        if child is None or child.poll() is not None:
            child = _children[os.getpid()] = _started()
        assert child.stdin is not None
        child.stdin.write(json.dumps({**question, "seconds": SECONDS}).encode() + b"\n")
        reply = _line(child, PATIENCE)
        if reply is not None:
            found = json.loads(reply)
            return Verdict(equal=found["equal"], answer=found.get("answer"))
        late = child.poll() is None
        _end(child)
        return Verdict(equal=False, trouble="timed_out" if late or child.returncode == -signal.SIGPROF else "failed")


def _started() -> subprocess.Popen[bytes]:
    check()
    child = subprocess.Popen(
        [sys.executable, "-m", "peftlab.graders._math_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    atexit.register(_end, child)
    if _line(child, PATIENCE) is None:
        _end(child)
        raise UserError(
            "the process that compares expressions with math-verify did not start",
            fix=f"see why: {sys.executable} -m peftlab.graders._math_child",
        )
    return child


def _line(child: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """The next line that the child writes; None when it ended, or wrote none in time."""
    assert child.stdout is not None
    until, text = time.monotonic() + seconds, b""
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([child.stdout], [], [], max(until - time.monotonic(), 0))
        piece = os.read(child.stdout.fileno(), 2**16) if ready else b""
        if not piece:
            if ready:
                child.wait()
            return None
        text += piece
    return text


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
