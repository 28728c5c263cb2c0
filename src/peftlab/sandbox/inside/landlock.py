"""Landlock: which files a process may still reach, by its own vow; not which folders there are.

Constants and structures: the kernel's `include/uapi/linux/landlock.h`, up to ABI 6; newer kernels keep to them.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from . import kernel

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on all machines
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH

_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_READ = _READ_FILE | _READ_DIR
_CHANGE = _WRITE_FILE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12  # remove dir and file, make dir, file, symlink
_BITS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights of files an ABI knows: refer came with 2, truncate with 3, ioctl of devices with 5."""


def abi() -> int:
    """The kernel's version of it; 0 where it has none."""
    try:
        return kernel.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))
    except OSError:
        return 0


def restrict(readable: Iterable[str], writable: Iterable[str]) -> int:
    """From now on only these paths, and nothing to execute, no TCP, no abstract sockets and no signals outside.

    Args:
        readable: Files and folders that can be read.
        writable: Files and folders that can also be changed.

    Returns:
        The ABI that was used; 0: the kernel has no Landlock, and nothing was restricted.
    """
    version = abi()
    if not version:
        return 0
    files = (1 << _BITS_OF_ABI.get(version, 16)) - 1
    attributes = struct.pack("Q", files)
    if version >= 4:
        attributes += struct.pack("Q", 3)  # bind and connect of TCP
    if version >= 6:
        attributes += struct.pack("Q", 3)  # abstract Unix sockets, signals
    ruleset = kernel.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    for path in readable:
        _allow(ruleset, path, _READ & files)
    for path in writable:
        _allow(ruleset, path, (_READ | _CHANGE | _TRUNCATE) & files)
    kernel.syscall(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)
    return version


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= _READ_FILE | _WRITE_FILE | _TRUNCATE  # the kernel refuses rights of folders for a file
    rule = struct.pack("=Qi", rights, descriptor)
    kernel.syscall(_ADD, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint(0))
    os.close(descriptor)
