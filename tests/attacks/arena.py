"""A machine with something to lose: canary files, open ports, a marked environment; and what is left after a run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peftlab
from attacks import machine, others, resources, verdicts
from attacks.attack import ENTRY, TESTS, Attack
from peftlab.sandbox.limits import MIB

ATTACKS: list[Attack] = [*resources.ATTACKS, *machine.ATTACKS, *others.ATTACKS, *verdicts.ATTACKS]
NOBODY = 65534
LIMITS: dict[str, Any] = {
    "cpu_seconds": 2,
    "wall_seconds": 20,
    "memory_bytes": 256 * MIB,
    "output_bytes": MIB // 4,
    "file_bytes": MIB,
    "processes": 16,
}
SOURCE = Path(peftlab.__file__).parents[1]
PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/", "/root", "/home", str(SOURCE.parent), "/run")


@dataclass
class Arena:
    """What the attacks are told of, and what they did to it."""

    folder: Path
    marker: str
    listening: dict[str, socket.socket] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def told(self, code: str) -> str:
        for name, value in self.names.items():
            code = code.replace("{" + name + "!r}", repr(value)).replace("{" + name + "}", str(value))
        return code.replace("{places!r}", repr(PLACES))

    def reached(self) -> list[str]:
        """Sockets that somebody reached."""
        found = []
        for name, one in self.listening.items():
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.recv(1) if name == "udp4" else one.accept()
                found.append(name)
        return found

    def left(self) -> list[str]:
        """Files with the marker in places that can be written."""
        return [str(path) for place in PLACES for path in Path(place).glob(f"*{self.marker}*") if Path(place).is_dir()]


@contextlib.contextmanager
def arena(folder: Path) -> Iterator[Arena]:
    marker = f"peftlab-{uuid.uuid4().hex}"
    place = Arena(folder=folder, marker=marker)
    folder.chmod(0o755)
    canary = folder / "canary"
    canary.write_text("a secret of the user", encoding="ascii")
    canary.chmod(0o644)
    short = Path("/tmp") / f"{marker[:20]}.socket"
    with contextlib.ExitStack() as undo:
        for name, family, kind, address in (
            ("tcp4", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            ("tcp6", socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
            ("udp4", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            ("unix", socket.AF_UNIX, socket.SOCK_STREAM, str(short)),
            ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, f"\0{marker}"),
        ):
            one = undo.enter_context(socket.socket(family, kind))
            one.bind(address)
            if kind == socket.SOCK_STREAM:
                one.listen(8)
            place.listening[name] = one
        undo.callback(short.unlink)
        short.chmod(0o777)
        ports = {name: str(place.listening[name].getsockname()[1]) for name in ("tcp4", "tcp6", "udp4")}
        place.names = {
            "canary": str(canary),
            "home": str(Path.home()),
            "repository": str(SOURCE.parent),
            "marker": marker,
            "unix": str(short),
            "abstract": marker,
            **ports,
        }
        yield place


def interpreter(user: int) -> str | None:
    """A Python that this user can start: one in root's home is out of an ordinary user's reach."""
    if user == os.geteuid():
        return sys.executable
    asked = (
        "import os, sys; here = os.path.realpath(sys._base_executable);"
        "sys.exit(sys.version_info < (3, 11) or not os.access(here, os.X_OK))"
    )
    for program in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        # it must be able to start it anew: root's first start of it reaches further
        command = [*as_user(user), program or "false", "-c", asked]
        if program and subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0:
            return program
    return None


def as_user(user: int) -> list[str]:
    if user == os.geteuid():
        return []
    return ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]


def run(
    user: int,
    way: str,
    programs: Sequence[dict[str, Any]],
    *,
    workers: int = 4,
    without: Sequence[str] = (),
    **limits: Any,
) -> dict[str, Any]:
    """Outcomes of programs that this user ran in a process of their own."""
    program = interpreter(user)
    assert program is not None
    asked = {
        "source": str(SOURCE),
        "way": way,
        "programs": list(programs),
        "limits": {**LIMITS, **limits},
        "workers": workers,
        "without": list(without),
    }
    done = subprocess.run(
        [*as_user(user), program, "-B", str(Path(__file__).parent / "runner.py")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def programs(place: Arena, attacks: Sequence[Attack]) -> list[dict[str, Any]]:
    told = []
    for one in attacks:
        tests = one.tests or TESTS
        entry = ENTRY if "def check" in tests else None
        told.append({"code": place.told(one.code), "tests": tests, "entry": entry})
    return told


def survivors() -> set[tuple[int, str]]:
    """Processes of the sandbox whose nursery is no more. Those of another evaluation on this machine have theirs.

    Looked for several times: one look is not one moment, and sees children of processes that have just ended.
    """
    found = _orphans()
    for _ in range(20):
        if not found:
            break
        time.sleep(0.1)
        found &= _orphans()
    return found


def _orphans() -> set[tuple[int, str]]:
    found = {}
    mine = os.readlink("/proc/self/ns/pid")
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (path / "cmdline").read_bytes()
            status = (path / "stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
            if b"from inside import" in command or os.readlink(path / "ns" / "pid") != mine:
                found[int(path.name)] = (int(status[1]), status[19], b"import nursery" in command)

    def kept(pid: int) -> bool:
        while pid in found:
            parent, _, nursery = found[pid]
            if nursery and parent != 1:
                return True
            pid = parent
        return False

    return {(pid, began) for pid, (_, began, _) in found.items() if not kept(pid)}
