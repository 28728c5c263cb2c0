"""One process in a box of its own: namespaces, limits, no rights; not what runs in it.

Three processes make a box. The *outer* one is a child of the nursery; it makes the namespaces and can be told to end it
all. The *first* one is the PID namespace's process 1: when it ends, the kernel kills whatever is left. The *inner* one
gives up everything and runs the code. With bubblewrap, the outer one becomes bubblewrap, which does the same.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from . import candidate, checker, kernel, landlock, seccomp, view

BROKEN = 125
"""Exit code of a box that could not be made; what went wrong is in its output."""

NOBODY = 65534
_PROC = 7
"""Descriptor of /proc, until the code runs; below it are those that the roles name."""


def outer(way: str, order: Mapping[str, Any], descriptors: Sequence[int], proc: int) -> NoReturn:
    """Make a box around this freshly forked process, and run a role in it.

    Args:
        way: `bubblewrap`, `kernel` or `none`.
        order: Role, limits, and what else the nursery was told.
        descriptors: Output, job, two ends of the pipes, report.
        proc: A descriptor of /proc.
    """
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.setsid()
        kernel.die_with_parent()
        _arrange(descriptors, proc)
        if way == "bubblewrap":
            os.set_inheritable(_PROC, True)
            size = str(order["limits"]["file_bytes"])
            command = [size if word == "{file_bytes}" else word for word in order["command"]]
            os.execv(command[0], [*command, json.dumps({**order, "command": None})])
        if way == "kernel":
            _room(order["limits"])
        else:
            os.chdir(order["work"])
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        _first(way, order)
    except OSError as error:
        _broken(error)


def _arrange(descriptors: Sequence[int], proc: int) -> None:
    """Known numbers, nothing else: whatever another box or the nursery uses is closed."""
    high = [os.dup2(one, 100 + place, inheritable=False) for place, one in enumerate([*descriptors, proc])]
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 0)
    for place, one in zip((1, 3, 4, 5, 6, _PROC), high, strict=True):
        os.dup2(one, place)
    os.dup2(1, 2)
    os.closerange(8, 1 << 16)


def _room(limits: Mapping[str, Any]) -> None:
    kernel.unshare(
        kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    )
    view.fresh_work(limits["file_bytes"])
    os.chdir(view.WORK)


def _first(way: str, order: Mapping[str, Any]) -> NoReturn:
    """Fork the first process of the namespace; wait for it; end as it ended."""
    child = os.fork()
    if child:
        for one in range(1, _PROC + 1):
            os.close(one)
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
        ended = _ending(os.waitpid(child, 0)[1])
        _reap()
        os._exit(ended)
    try:
        kernel.die_with_parent()
        watch(way, order)
    except OSError as error:
        _broken(error)


def watch(way: str, order: Mapping[str, Any]) -> NoReturn:
    """Fork the inner process; when it ends, report the CPU time that it used, and end as it ended."""
    inner = os.fork()
    if not inner:
        kernel.die_with_parent()
        inside(way, order)
    for one in (1, 2, 3, 4, 5, _PROC):
        os.close(one)
    while True:
        gone, status, usage = os.wait4(-1, 0)
        if gone == inner:
            break
    os.write(checker.REPORT, f"\ncpu {usage.ru_utime + usage.ru_stime:.6f}\n".encode())
    os._exit(_ending(status))


def _reap() -> None:
    """Ends what was left behind. With a PID namespace there is nothing; without, orphans come to this process."""
    while True:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as stream:
                left = [int(word) for word in stream.read().split()]
            for one in left:
                os.kill(one, signal.SIGKILL)
            os.wait()
        except OSError:
            return


def _ending(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def inside(way: str, order: Mapping[str, Any]) -> NoReturn:
    """The inner process: give up everything, then run the role."""
    facts = confine(way, order)
    role, limit = order["role"], order["limits"]["output_bytes"]
    if role == "probe":
        os.write(checker.REPORT, json.dumps(facts).encode() + b"\n")
        os._exit(0)
    if role == "checker":
        checker.main(limit)
    os.write(checker.REPORT, b"ready\n")
    os.close(checker.REPORT)
    candidate.main(limit)
    os._exit(0)


def confine(way: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """Every layer that this machine has, innermost last.

    Returns:
        What can be said about them from in here.
    """
    limits = order["limits"]
    started_as_root = os.geteuid() == 0 and way != "none"
    if started_as_root:
        # the limit on processes does not bind root
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    if way == "kernel" or started_as_root:
        # a namespace of its own counts its own processes only (Linux 5.14)
        kernel.own_user_namespace(_PROC)
    os.close(_PROC)
    seen = _seen() if order["role"] == "probe" else {}
    _limit(limits)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.drop_capabilities()
    writable = [view.WORK if way != "none" else order["work"], "/dev/null"]
    left_out = order["without"]
    readable = [*order["shown"], *view.DEVICES, *order.get("code", ())]
    version = 0 if "landlock" in left_out else landlock.restrict(readable, writable)
    filtered = False if "seccomp" in left_out else seccomp.apply()
    return {
        "uid": os.geteuid(),
        "pid": os.getpid(),
        "capabilities": kernel.capabilities() if not filtered else 0,
        **seen,
        "landlock": version,
        "seccomp": filtered,
    }


def _seen() -> dict[str, Any]:
    """What of the machine is in view. Asked for before the filter, which would refuse the question."""
    import socket

    return {"interfaces": [name for _, name in socket.if_nameindex()], "files": sorted(os.listdir("/"))}


def _limit(limits: Mapping[str, Any]) -> None:
    cpu = math.ceil(limits["cpu_seconds"])
    wanted = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NPROC: limits["processes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_STACK: 8 << 20,
    }
    for which, value in wanted.items():
        pair = value if isinstance(value, tuple) else (value, value)
        hard = resource.getrlimit(which)[1]
        if hard != resource.RLIM_INFINITY:
            pair = (min(pair[0], hard), min(pair[1], hard))
        resource.setrlimit(which, pair)


def _broken(error: OSError) -> NoReturn:
    os.write(2, f"the box could not be made: {error}".encode())
    os._exit(BROKEN)


def main() -> None:
    """What bubblewrap starts, with its order as the last argument."""
    order = json.loads(sys.argv[-1])
    try:
        watch("bubblewrap", order)
    except OSError as error:
        _broken(error)
