"""What a sandboxed process sees of the file system: the interpreter's libraries, read-only, and nothing else.

The kernel's own way; where bubblewrap builds the view, the list of paths is the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from . import kernel

DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
WORK = "/tmp"


def enter(shown: Sequence[str], hidden: Sequence[str]) -> None:
    """Give this process and its children a root of their own.

    Args:
        shown: Files and folders that are there, read-only.
        hidden: Folders below them that are empty instead.
    """
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    if os.geteuid() == 0 and kernel.capabilities() >> kernel.CAP_SYS_ADMIN & 1:
        kernel.unshare(kernel.CLONE_NEWNS)
    else:
        kernel.own_user_namespace(proc)
        kernel.unshare(kernel.CLONE_NEWNS)
    os.close(proc)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    base = "/tmp"
    kernel.mount("tmpfs", base, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=1m")
    os.mkdir(f"{base}/old")
    kernel.pivot_root(base, f"{base}/old")
    os.chdir("/")
    for path in shown:
        _show(path)
    for path in DEVICES:
        _place(path, folder=False)
        kernel.mount(f"/old{path}", path, None, kernel.MS_BIND)
    for path in hidden:
        kernel.mount("tmpfs", path, "tmpfs", kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV, "size=4k")
    os.makedirs(WORK, exist_ok=True)
    kernel.unmount("/old")
    os.rmdir("/old")
    kernel.mount("none", "/", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID)


def _show(path: str) -> None:
    """One path of the machine, at its own place; a link stays a link."""
    source = f"/old{path}"
    if os.path.islink(source):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(os.readlink(source), path)
        return
    _place(path, folder=os.path.isdir(source))
    kernel.mount(source, path, None, kernel.MS_BIND | kernel.MS_REC)
    kernel.make_read_only(path)


def _place(path: str, *, folder: bool) -> None:
    os.makedirs(path if folder else os.path.dirname(path), exist_ok=True)
    if not folder:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def fresh_work(size: int) -> None:
    """An empty working folder of this namespace alone, limited in bytes and in the number of files."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("tmpfs", WORK, "tmpfs", flags, f"mode=1777,size={size},nr_inodes=1000")
