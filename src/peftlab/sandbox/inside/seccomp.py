"""A filter of system calls: an interpreter that computes needs few of them; not who applies it, or when.

An allow-list. Everything else is refused with EPERM: sockets, new processes and programs, ptrace, mounts, namespaces,
keys, BPF, io_uring, memory files. Threads are allowed, processes are not. Classic BPF through prctl(2); the numbers are
those of `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`, the constants those of
`include/uapi/linux/{seccomp,audit,bpf_common}.h`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from . import kernel

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # AUDIT_ARCH_*, column of the table
_X32 = 0x40000000

_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_*
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, JMP|JEQ, JGE, JSET, RET
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; arguments are 8 bytes each

_TABLE = """
read 0 63; write 1 64; readv 19 65; writev 20 66; pread64 17 67; pwrite64 18 68; lseek 8 62; close 3 57; close_range
436 436; fstat 5 80; newfstatat 262 79; stat 4 -; lstat 6 -; statx 332 291; open 2 -; openat 257 56; creat 85 -;
access 21 -; faccessat 269 48; faccessat2 439 439; readlink 89 -; readlinkat 267 78; getdents64 217 61; getcwd 79 17;
chdir 80 49; fchdir 81 50; mkdir 83 -; mkdirat 258 34; rmdir 84 -; unlink 87 -; unlinkat 263 35; rename 82 -; renameat
264 38; renameat2 316 276; symlink 88 -; symlinkat 266 36; chmod 90 -; fchmod 91 52; fchmodat 268 53; utimensat 280
88; truncate 76 45; ftruncate 77 46; fallocate 285 47; fsync 74 82; fdatasync 75 83; flock 73 32; umask 95 166; statfs
137 43; fstatfs 138 44; copy_file_range 326 285; sendfile 40 71; mmap 9 222; munmap 11 215; mprotect 10 226; mremap 25
216; madvise 28 233; brk 12 214; membarrier 324 283; rt_sigaction 13 134; rt_sigprocmask 14 135; rt_sigreturn 15 139;
rt_sigpending 127 136; rt_sigtimedwait 128 137; rt_sigsuspend 130 133; sigaltstack 131 132; pause 34 -;
restart_syscall 219 128; alarm 37 -; setitimer 38 103; getitimer 36 102; nanosleep 35 101; clock_nanosleep 230 115;
clock_gettime 228 113; clock_getres 229 114; gettimeofday 96 169; time 201 -; times 100 153; getrusage 98 165; pipe 22
-; pipe2 293 59; dup 32 23; dup2 33 -; dup3 292 24; fcntl 72 25; poll 7 -; ppoll 271 73; select 23 -; pselect6 270 72;
epoll_create 213 -; epoll_create1 291 20; epoll_ctl 233 21; epoll_wait 232 -; epoll_pwait 281 22; eventfd2 290 19;
getpid 39 172; gettid 186 178; getppid 110 173; getpgrp 111 -; getpgid 121 155; getsid 124 156; getuid 102 174;
geteuid 107 175; getgid 104 176; getegid 108 177; getgroups 115 158; getresuid 118 148; getresgid 120 150; getrlimit
97 163; setrlimit 160 164; uname 63 160; sysinfo 99 179; getrandom 318 278; getcpu 309 168; getpriority 140 141;
sched_yield 24 124; sched_getaffinity 204 123; sched_getparam 143 121; sched_getscheduler 145 120; futex 202 98;
futex_waitv 449 449; set_robust_list 273 99; get_robust_list 274 100; set_tid_address 218 96; rseq 334 293;
arch_prctl 158 -; exit 60 93; exit_group 231 94; wait4 61 260; waitid 247 95
"""
"""Calls that are allowed whatever their arguments: name, x86-64, arm64."""

_CLONE, _CLONE3, _IOCTL, _PRLIMIT = (56, 220), (435, 435), (16, 29), (302, 261)
_KILL_CALL, _TGKILL = (62, 129), (234, 131)
_CLONE_THREAD = 0x00010000
_TERMINAL_GET, _CLOSE_ON_EXEC, _BYTES_THERE = 0x5401, 0x5451, 0x541B  # TCGETS, FIOCLEX, FIONREAD


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def _argument(number: int, index: int, code: int, values: tuple[int, ...], otherwise: int) -> list[bytes]:
    """If the call is `number`: allowed if its argument's low word is one of `values`, else `otherwise`."""
    body = [_step(_LOAD, _ARGUMENT + 8 * index)]
    for value in values:
        body += [_step(code, value, 0, 1), _step(_RETURN, _ALLOW)]
    body.append(_step(_RETURN, otherwise))
    return [_step(_EQUAL, number, 0, len(body)), *body]


def filter_for(machine: str, own: int) -> bytes | None:
    """The filter as BPF instructions; None for a machine whose numbers are not in the table.

    Args:
        machine: Its name, as `uname -m` says it.
        own: The process that it is for, which may signal itself.
    """
    if machine not in _ARCHITECTURES:
        return None
    architecture, column = _ARCHITECTURES[machine]
    refused = _ERRNO | errno.EPERM
    steps = [_step(_LOAD, _ARCHITECTURE), _step(_EQUAL, architecture, 1, 0), _step(_RETURN, _KILL)]
    steps += [_step(_LOAD, _NUMBER), _step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, _KILL)]
    for line in _TABLE.replace("\n", " ").split(";"):
        number = line.split()[1 + column]
        if number != "-":
            steps += [_step(_EQUAL, int(number), 0, 1), _step(_RETURN, _ALLOW)]
    # glibc falls back from clone3, whose flags a filter cannot see, to clone
    steps += [_step(_EQUAL, _CLONE3[column], 0, 1), _step(_RETURN, _ERRNO | errno.ENOSYS)]
    steps += _argument(_CLONE[column], 0, _ANY_BIT, (_CLONE_THREAD,), refused)
    steps += _argument(_IOCTL[column], 1, _EQUAL, (_TERMINAL_GET, _CLOSE_ON_EXEC, _BYTES_THERE), refused)
    steps += _argument(_PRLIMIT[column], 0, _EQUAL, (0, own), refused)
    steps += _argument(_KILL_CALL[column], 0, _EQUAL, (own,), refused)
    steps += _argument(_TGKILL[column], 0, _EQUAL, (own,), refused)
    steps.append(_step(_RETURN, refused))
    return b"".join(steps)


def apply() -> bool:
    """Filters this process from now on. `no_new_privs` must be set.

    Returns:
        Whether it could: a kernel without filters, or another machine, cannot.
    """
    program = filter_for(kernel.machine(), os.getpid())
    if program is None:
        return False
    body = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(body))
    pointer = ctypes.create_string_buffer(header, len(header))
    try:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(kernel.PR_SET_SECCOMP, ctypes.c_ulong(2), pointer, 0, 0) == 0)  # SECCOMP_MODE_FILTER
    except OSError:
        return False
