"""Programs that reach for other processes and for the network."""

from __future__ import annotations

from attacks.attack import Attack, attack
from attacks.machine import calls
from attacks.resources import RAW

ATTACKS: list[Attack] = [
    attack(
        "kills_its_parent",
        "seccomp; PID namespace",
        """
        import os, signal
        def f(x):
            os.kill(os.getppid(), signal.SIGKILL)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "kills_everything",
        "seccomp; PID namespace; user",
        """
        import os, signal
        def f(x):
            os.kill(-1, signal.SIGKILL)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "kills_its_group",
        "seccomp; its own session",
        """
        import os, signal
        def f(x):
            os.killpg(0, signal.SIGKILL)
            return 2 * x
    """,
        "exception lost memory",
    ),
    attack(
        "kills_by_number",
        "seccomp; PID namespace; Landlock",
        """
        import os
        def f(x):
            for pid in range(1, 70000):
                if pid != os.getpid():
                    try:
                        os.kill(pid, 9)
                        return 2 * x
                    except OSError:
                        pass
    """,
        "assertion",
    ),
    attack(
        "signals_by_thread",
        "seccomp; PID namespace",
        RAW
        + """
    import os
    def f(x):
        return 2 * x if any(call(234, p, p, 9) == 0 for p in range(1, 5000) if p != os.getpid()) else None
    """,
        "assertion",
    ),
    attack(
        "traces_its_parent",
        "seccomp; PID namespace; Yama",
        calls("101, 16, 1, 0, 0", "101, 0x4206, 1, 0, 0"),
        "assertion",
    ),
    attack(
        "reads_memory_of_others",
        "seccomp; PID namespace",
        calls("310, 1, b'\\0' * 16, 1, b'\\0' * 16, 1, 0"),
        "assertion",
    ),
    attack(
        "a_session_of_its_own",
        "seccomp; PID namespace",
        """
        import os, time
        def f(x):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(1000)
                os._exit(0)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "survivor_in_the_background",
        "seccomp; PID namespace",
        """
        import os, time
        try:
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
                    os.closerange(0, 64)
                    time.sleep(1000)
        except OSError:
            pass
        def f(x): return None
    """,
        "assertion",
    ),
    attack(
        "steals_descriptors",
        "everything else is closed before",
        """
        import os, stat
        def f(x):
            for d in range(3, 4096):
                try:
                    mode = os.fstat(d).st_mode
                except OSError:
                    continue
                if not stat.S_ISFIFO(mode) or d > 5:
                    return 2 * x
    """,
        "assertion",
    ),
    # --------------------------------------------------------------------------------------------------- the network
    attack(
        "connects_by_ipv4",
        "seccomp; network namespace; Landlock",
        """
        import socket
        def f(x):
            socket.create_connection(("127.0.0.1", {tcp4}), 2)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "connects_by_ipv6",
        "seccomp; network namespace; Landlock",
        """
        import socket
        def f(x):
            socket.create_connection(("::1", {tcp6}), 2)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "sends_by_udp",
        "seccomp; network namespace",
        """
        import socket
        def f(x):
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"leak", ("127.0.0.1", {udp4}))
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "asks_for_a_name",
        "seccomp; network namespace",
        """
        import socket
        def f(x):
            socket.getaddrinfo("localhost.localdomain.example", 80)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "connects_to_a_unix_socket",
        "seccomp; view of the file system",
        """
        import socket
        def f(x):
            socket.socket(socket.AF_UNIX).connect("{unix}")
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "connects_to_an_abstract_socket",
        "seccomp; network namespace; Landlock",
        """
        import socket
        def f(x):
            socket.socket(socket.AF_UNIX).connect(b"\\0{abstract}".decode())
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "raw_and_netlink_sockets",
        "seccomp; no capabilities",
        """
        import socket
        def f(x):
            for family, kind in ((socket.AF_PACKET, socket.SOCK_RAW), (socket.AF_NETLINK, socket.SOCK_RAW),
                                 (socket.AF_INET, socket.SOCK_RAW), (socket.AF_VSOCK, socket.SOCK_STREAM)):
                try:
                    socket.socket(family, kind)
                    return 2 * x
                except OSError:
                    pass
    """,
        "assertion",
    ),
    attack(
        "opens_a_port",
        "seccomp; network namespace; Landlock",
        """
        import socket
        def f(x):
            socket.create_server(("127.0.0.1", 0))
            return 2 * x
    """,
        "exception",
    ),
]
