"""Calls of the Linux kernel that Python has no function for, by ctypes; not what they are used for.

Constants are the kernel's own (`include/uapi/linux/`: `sched.h`, `mount.h`, `prctl.h`, `capability.h`); the numbers
of system calls are those of `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h` (arm64).
"""

from __future__ import annotations

import ctypes
import os
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

AT_FDCWD = -100
AT_RECURSIVE = 0x8000
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_SET_CHILD_SUBREAPER = 36

CAP_SYS_ADMIN = 21
_CAPABILITY_VERSION_3 = 0x20080522

SYSCALLS = {
    "x86_64": {"pivot_root": 155, "capset": 126, "capget": 125},
    "aarch64": {"pivot_root": 41, "capset": 91, "capget": 90},
}
"""Calls without a wrapper in glibc whose numbers differ between the two machines."""

_MOUNT_SETATTR = 442  # the same on all machines, as all calls since 424

_libc = ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *arguments: object) -> int:
    """A system call by its number.

    Raises:
        OSError: It failed.
    """
    return _checked(f"syscall {number}", _libc.syscall(ctypes.c_long(number), *arguments))


def _checked(what: str, result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def machine() -> str:
    """The machine's name, as the tables here have it."""
    return os.uname().machine


def unshare(flags: int) -> None:
    """New namespaces for this process."""
    _checked("unshare", _libc.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mounts, as mount(2)."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    result = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _checked(f"mount {target}", result)


def unmount(target: str) -> None:
    """Takes a mount and all below it away."""
    _checked(f"umount {target}", _libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)))


def pivot_root(new: str, put_old: str) -> None:
    """Makes `new` this namespace's root."""
    syscall(SYSCALLS[machine()]["pivot_root"], os.fsencode(new), os.fsencode(put_old))


def make_read_only(target: str) -> None:
    """A bind mount and all mounts below it: read-only, without set-uid programs, without devices.

    Where the kernel has no `mount_setattr` (before 5.12), the mount itself only; flags that it had stay, because a user
    namespace may not clear them.
    """
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    try:
        syscall(
            _MOUNT_SETATTR,
            ctypes.c_int(AT_FDCWD),
            os.fsencode(target),
            ctypes.c_uint(AT_RECURSIVE),
            attributes,
            ctypes.c_size_t(len(attributes)),
        )
    except OSError:
        kept = os.statvfs(target).f_flag & (os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME)
        kept |= (1 << 21) if os.statvfs(target).f_flag & os.ST_RELATIME else 0  # MS_RELATIME
        mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | kept)


def prctl(option: int, value: int = 0) -> int:
    """prctl(2) with one argument."""
    arguments = (ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
    return _checked(f"prctl {option}", _libc.prctl(ctypes.c_int(option), *arguments))


def die_with_parent() -> None:
    """The kernel kills this process when its parent ends. A change of uid clears that, so it is asked for last."""
    prctl(PR_SET_PDEATHSIG, 9)


def capabilities() -> int:
    """The effective capabilities, as a set of bits."""
    data = ctypes.create_string_buffer(24)
    syscall(SYSCALLS[machine()]["capget"], struct.pack("Ii", _CAPABILITY_VERSION_3, 0), data)
    low, _, _, high, _, _ = struct.unpack("6I", data.raw)
    return int(low | high << 32)


def drop_capabilities() -> None:
    """Gives up every capability, for good."""
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    syscall(SYSCALLS[machine()]["capset"], header, bytes(24))


def own_user_namespace(proc: int) -> None:
    """A user namespace with this process's user alone in it.

    Args:
        proc: A descriptor of `/proc`, which may no longer be in view.
    """
    user, group = os.geteuid(), os.getegid()
    # a change of uid made the process undumpable, and its files in /proc root's
    prctl(PR_SET_DUMPABLE, 1)
    unshare(CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("gid_map", f"{group} {group} 1"), ("uid_map", f"{user} {user} 1")):
        descriptor = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(descriptor, text.encode())
        os.close(descriptor)
