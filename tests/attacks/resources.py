"""Programs that take more than their share: processes, memory, time, output, files."""

from __future__ import annotations

from attacks.attack import Attack, attack

RAW = """
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    def call(*a):
        return libc.syscall(*[ctypes.c_long(v) if isinstance(v, int) else v for v in a])
"""

ATTACKS: list[Attack] = [
    attack(
        "fork_bomb",
        "seccomp; limit on processes; PID namespace",
        """
        import os
        def f(x):
            while True:
                try:
                    os.fork()
                except OSError:
                    raise
    """,
        "exception timeout",
    ),
    attack(
        "fork_bomb_that_never_gives_up",
        "seccomp; limit on processes; CPU limit",
        """
        import os
        while True:
            try:
                os.fork()
            except BaseException:
                pass
    """,
        "timeout",
    ),
    attack(
        "answer_from_a_forked_child",
        "seccomp",
        """
        import os
        def f(x):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "subprocess",
        "seccomp; view of the file system; Landlock",
        """
        import subprocess
        def f(x):
            subprocess.run(["/bin/true"], check=True)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "os_system",
        "seccomp",
        """
        import os
        def f(x):
            return 2 * x if os.system("true") == 0 else None
    """,
        "exception assertion",
    ),
    attack(
        "exec_another_program",
        "seccomp; Landlock",
        """
        import os, sys
        def f(x):
            os.execv(sys.executable, [sys.executable, "-c", "print(1)"])
    """,
        "exception",
    ),
    attack(
        "posix_spawn",
        "seccomp",
        """
        import os, sys
        def f(x):
            os.posix_spawn(sys.executable, [sys.executable, "-c", "1"], {})
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "multiprocessing",
        "seccomp; no /dev/shm",
        """
        import multiprocessing
        def g(x): return 2 * x
        def f(x):
            with multiprocessing.get_context("fork").Pool(1) as pool:
                return pool.apply(g, (x,))
    """,
        "exception",
    ),
    attack(
        "raw_fork_call",
        "seccomp",
        RAW
        + """
    def f(x):
        pid = call(57)
        if pid == 0:
            call(60, 0)
        return 2 * x if pid > 0 else None
    """,
        "assertion",
    ),
    attack(
        "raw_clone3",
        "seccomp",
        RAW
        + """
    def f(x):
        size = 88
        args = (ctypes.c_uint64 * 11)()
        args[4] = 17
        pid = call(435, ctypes.byref(args), size)
        if pid == 0:
            call(60, 0)
        return 2 * x if pid > 0 else None
    """,
        "assertion",
    ),
    attack(
        "memory_bomb",
        "limit on address space",
        """
        def f(x):
            held = []
            while True:
                held.append(bytearray(1 << 22))
    """,
        "memory",
    ),
    attack(
        "memory_at_once",
        "limit on address space",
        """
        held = bytearray(1 << 36)
        def f(x): return 2 * x
    """,
        "memory",
    ),
    attack(
        "memory_by_mmap",
        "limit on address space",
        """
        import mmap
        def f(x):
            held = []
            for _ in range(100):
                m = mmap.mmap(-1, 1 << 24)
                for at in range(0, 1 << 24, 4096):
                    m[at] = 1
                held.append(m)
            return 2 * x
    """,
        "exception memory",
    ),
    attack(
        "memory_files",
        "seccomp",
        """
        import os
        def f(x):
            held = []
            for n in range(50):
                d = os.memfd_create("m")
                os.write(d, bytes(1 << 19))
                held.append(d)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "memory_swallowed",
        "limit on address space; CPU limit",
        """
        held = []
        def f(x):
            while True:
                try:
                    held.append(bytearray(1 << 20))
                except MemoryError:
                    pass
    """,
        "timeout memory",
    ),
    attack(
        "pipes_full_of_data",
        "limit on open files",
        """
        import os
        def f(x):
            for _ in range(1000):
                a, b = os.pipe()
                os.write(b, bytes(65536))
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "endless_output",
        "output is counted outside",
        """
        def f(x):
            while True:
                print("passed " * 100)
    """,
        "output",
    ),
    attack(
        "endless_errors",
        "output is counted outside",
        """
        import os
        while True:
            os.write(2, b"x" * 4096)
    """,
        "output",
    ),
    attack(
        "endless_loop",
        "CPU limit",
        """
        def f(x):
            while True:
                pass
    """,
        "timeout",
    ),
    attack(
        "endless_loop_in_c",
        "CPU limit",
        """
        def f(x):
            return 7 ** (10 ** 10)
    """,
        "timeout memory",
    ),
    attack(
        "endless_loop_deaf_to_signals",
        "CPU limit, whose hard end is SIGKILL",
        """
        import signal
        for one in range(1, 65):
            try:
                signal.signal(one, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass
    """,
        "timeout",
    ),
    attack("endless_loop_at_import", "CPU limit", "while True: pass", "timeout"),
    attack(
        "endless_compilation",
        "CPU limit; limit on address space",
        """
        x = 1
        def f(x):
            return eval("+".join(["x"] * 10000000))
    """,
        "timeout memory lost exception",
    ),
    attack(
        "raises_its_own_limits",
        "hard limits",
        """
        import resource
        for which in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
            resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        def f(x): return 2 * x
    """,
        "exception",
    ),
    attack(
        "clock_wait",
        "CPU limit",
        """
        import time
        def f(x):
            end = time.time() + 10**6
            while time.time() < end:
                pass
            return 2 * x
    """,
        "timeout",
    ),
    attack(
        "sleeps",
        "wall limit",
        """
        import time
        def f(x):
            time.sleep(10**6)
            return 2 * x
    """,
        "timeout",
    ),
    attack(
        "waits_for_a_signal",
        "wall limit",
        """
        import signal
        signal.pause()
        def f(x): return 2 * x
    """,
        "timeout",
    ),
    attack(
        "waits_for_a_lock",
        "wall limit",
        """
        import threading
        lock = threading.Lock()
        def f(x):
            lock.acquire()
            lock.acquire()
    """,
        "timeout",
    ),
    attack(
        "waits_for_input",
        "empty standard input",
        """
        def f(x):
            input()
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "reads_the_requests_itself",
        "wall limit; the tests' process alone decides",
        """
        import os
        def f(x):
            for d in range(3, 64):
                try:
                    os.read(d, 1 << 16)
                except OSError:
                    pass
            return None
    """,
        "timeout lost assertion",
    ),
    attack(
        "thousand_threads",
        "limit on processes; limit on address space",
        """
        import threading, time
        def f(x):
            for _ in range(1000):
                threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
            return 2 * x
    """,
        "exception memory",
    ),
    attack(
        "threads_left_running",
        "killed as a whole tree",
        """
        import threading, time
        def forever():
            while True:
                time.sleep(0.01)
        threading.Thread(target=forever).start()
        def f(x): return 2 * x + 1
    """,
        "assertion",
    ),
    attack(
        "deep_recursion",
        "its own process",
        """
        import sys
        sys.setrecursionlimit(10**9)
        def g(n): return g(n + 1) + 1
        def f(x): return g(0)
    """,
        "lost exception memory timeout",
    ),
    attack(
        "deep_data",
        "limit on depth",
        """
        def f(x):
            a = []
            for _ in range(100000):
                a = [a]
            return a
    """,
        "output lost exception",
    ),
    attack(
        "data_that_holds_itself",
        "limit on depth",
        """
        def f(x):
            a = []
            a.append(a)
            return a
    """,
        "output lost exception",
    ),
    attack(
        "data_that_doubles",
        "limit on what crosses",
        """
        def f(x):
            a = [1]
            for _ in range(60):
                a = [a, a]
            return a
    """,
        "output",
    ),
    attack(
        "huge_answer",
        "limit on what crosses",
        """
        def f(x): return "x" * (1 << 26)
    """,
        "output",
    ),
    attack(
        "huge_number",
        "limit on what crosses",
        """
        def f(x): return 1 << (1 << 26)
    """,
        "output",
    ),
    attack(
        "endless_answer",
        "limits of the tests' own process",
        """
        import itertools
        def f(x): return itertools.count()
    """,
        "timeout memory",
        tests="def check(candidate):\n    assert list(candidate(1)) == [2]\n",
    ),
    attack(
        "answers_that_collide",
        "CPU limit of the tests' own process",
        """
        def f(x): return {(2**61 - 1) * k for k in range(9000)}
    """,
        "timeout output assertion",
    ),
    attack(
        "huge_file",
        "limit on file size; size of the working folder",
        """
        def f(x):
            with open("big", "wb") as stream:
                for _ in range(64):
                    stream.write(bytes(1 << 20))
                    stream.flush()
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "huge_sparse_file",
        "limit on file size",
        """
        def f(x):
            with open("big", "wb") as stream:
                stream.truncate(1 << 40)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "many_large_files",
        "size of the working folder",
        """
        def f(x):
            for n in range(100):
                with open(f"file{n}", "wb") as stream:
                    stream.write(bytes(1 << 19))
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "hundred_thousand_files",
        "number of files in the working folder; CPU limit",
        """
        def f(x):
            for n in range(100000):
                open(f"file{n}", "w").close()
            return 2 * x
    """,
        "exception timeout",
    ),
    attack(
        "changes_its_priority",
        "no capabilities; seccomp",
        """
        import os
        os.nice(-10)
        def f(x): return 2 * x
    """,
        "exception",
    ),
    attack(
        "alarms_without_end",
        "its own process",
        """
        import signal
        signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        def f(x):
            while True:
                pass
    """,
        "exception lost timeout",
    ),
]
