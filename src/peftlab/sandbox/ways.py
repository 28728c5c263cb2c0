"""How this machine can isolate a process, found out by trying; not what is run."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Way = Literal["bubblewrap", "kernel", "none"]
HERE = Path(__file__).parent
_INSIDE = "/sandbox"
"""Where the code of the inner processes lies in bubblewrap's view."""

START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from inside import {0}; sys.path.pop(0); {0}.main()"
"""Runs a module of `inside` without the package around it."""

FLAGS = ("-s", "-S", "-P")
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LANG": "C.UTF-8", "HOME": "/tmp", "TZ": "UTC"}
"""All that a program sees of the environment. The order of sets is the same in each run."""


def interpreter() -> str:
    """The interpreter behind a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def shown() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a sandboxed process sees of this machine: paths, and folders in them that are empty instead."""
    prefix = sys.base_prefix
    wanted = [interpreter(), f"{prefix}/lib", f"{prefix}/{sys.platlibdir}", "/usr/lib", "/usr/lib64", "/lib", "/lib64"]
    wanted += [sysconfig.get_path("stdlib"), f"{sys.base_exec_prefix}/lib", "/etc/ld.so.cache"]
    kept: list[str] = []
    for path in sorted({os.path.normpath(one) for one in wanted if os.path.lexists(one)}):
        if not any(path.startswith(f"{above}/") for above in kept):
            kept.append(path)
    # packages of others lie below the libraries, this one among them
    names = ("site-packages", "dist-packages")
    folders = [Path(sysconfig.get_path("stdlib")), *Path("/usr/lib").glob("python3*")]
    hidden = {os.path.realpath(one / name) for one in folders for name in names if (one / name).is_dir()}
    return tuple(kept), tuple(sorted(one for one in hidden if any(one.startswith(f"{above}/") for above in kept)))


def plan(way: Way, without: Sequence[str] = ()) -> dict[str, Any]:
    """What a nursery is told, beside its orders.

    Args:
        way: How it isolates.
        without: Layers to leave out, `landlock` or `seccomp`, to see what the others hold.
    """
    paths, hidden = shown()
    told: dict[str, Any] = {"way": way, "shown": paths, "hidden": hidden, "without": list(without)}
    if way == "bubblewrap":
        told |= {"command": _bubblewrap(paths, hidden), "code": [_INSIDE]}
    return told


def _bubblewrap(paths: tuple[str, ...], hidden: tuple[str, ...]) -> list[str]:
    program = shutil.which("bwrap")
    assert program, "only asked for where it is installed"
    command = [program, "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    if os.geteuid() == 0:
        # no limit on processes binds root: the inner process drops root itself, and makes its own user namespace
        command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-all"]
    for name, value in ENVIRONMENT.items():
        command += ["--setenv", name, value]
    above = {str(folder) for path in (*paths, "/dev/null", f"{_INSIDE}/inside") for folder in Path(path).parents}
    for folder in sorted(above - {"/"}):
        command += ["--perms", "0755", "--dir", folder]  # else those in between are for root alone
    for path in paths:
        command += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    for path in hidden:
        command += ["--size", "4096", "--tmpfs", path, "--remount-ro", path]
    for path in ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"):
        command += ["--dev-bind", path, path]
    command += ["--ro-bind", str(HERE / "inside"), f"{_INSIDE}/inside"]
    command += ["--perms", "1777", "--size", "{file_bytes}", "--tmpfs", "/tmp"]
    command += ["--chdir", "/tmp", "--remount-ro", "/"]
    return [*command, "--", interpreter(), *FLAGS, "-c", START.format("box"), _INSIDE]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What trying a way showed.

    Attributes:
        way: Which.
        works: Whether a process in it is isolated.
        text: What is missing, or how it looks from inside.
        facts: What the tried process said of itself.
    """

    way: Way
    works: bool
    text: str
    facts: Mapping[str, Any]


def judged(way: Way, facts: Mapping[str, Any]) -> Found:
    """Whether a process that says this of itself is isolated."""
    shown_at_top = {path.split("/")[1] for path in shown()[0]} | {"tmp", "dev", _INSIDE[1:]}
    missing = [
        text
        for text, wrong in (
            ("it is still root", facts["uid"] == 0),
            ("it has capabilities", facts["capabilities"] != 0),
            ("it sees the machine's processes", facts["pid"] > 10),
            ("it sees the machine's network", set(facts["interfaces"]) - {"lo"}),
            ("it sees the machine's files", set(facts["files"]) - shown_at_top),
        )
        if wrong
    ]
    return Found(way=way, works=not missing, text="; ".join(missing) or "isolated", facts=facts)
