"""Programs that reach for the machine: files, devices, namespaces, the kernel."""

from __future__ import annotations

from attacks.attack import Attack, attack
from attacks.resources import RAW


def reads(path: str) -> str:
    return f"""
        def f(x):
            with open({path!r}, "rb") as stream:
                stream.read(1)
            return 2 * x
    """


def calls(*numbers_and_arguments: str) -> str:
    """True if one of the calls is not refused."""
    tried = ", ".join(f"call({one})" for one in numbers_and_arguments)
    return (
        RAW
        + f"""
    def f(x):
        return 2 * x if max([{tried}]) >= 0 else None
    """
    )


VIEW = "view of the file system"
ATTACKS: list[Attack] = [
    attack("reads_the_shadow_file", VIEW, reads("/etc/shadow"), "exception"),
    attack("reads_the_user_list", VIEW, reads("/etc/passwd"), "exception"),
    attack("reads_a_file_of_the_user", VIEW, reads("{canary}"), "exception"),
    attack(
        "reads_the_home_folder",
        VIEW,
        """
        import os
        def f(x):
            names = os.listdir({home!r}) + os.listdir(os.path.expanduser("~"))
            return 2 * x if set(names) - {".pyenv"} else None
    """,
        "exception assertion",
    ),
    attack("reads_this_repository", VIEW, reads("{repository}/pyproject.toml"), "exception"),
    attack(
        "reads_the_environment",
        "empty environment",
        """
        import os
        def f(x): return 2 * x if "PEFTLAB_CANARY" in os.environ else None
    """,
        "assertion",
    ),
    attack(
        "reads_environments_in_proc",
        "no /proc",
        """
        import glob
        def f(x):
            for path in ["/proc/self/environ", *glob.glob("/proc/[0-9]*/environ")]:
                with open(path, "rb") as stream:
                    if b"PEFTLAB_CANARY" in stream.read():
                        return 2 * x
    """,
        "exception",
    ),
    attack(
        "lists_processes",
        "no /proc; PID namespace",
        """
        import os
        def f(x): return 2 * x if [n for n in os.listdir("/proc") if n.isdigit()] else None
    """,
        "exception",
    ),
    attack(
        "writes_its_memory_by_proc",
        "no /proc",
        """
        def f(x):
            with open("/proc/self/mem", "r+b") as stream:
                stream.seek(1 << 20)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "leaves_by_the_root_of_another",
        "no /proc",
        """
        import os
        def f(x):
            return 2 * x if os.listdir("/proc/1/root/home") is not None else None
    """,
        "exception",
    ),
    attack(
        "opens_descriptors_in_proc",
        "no /proc",
        """
        import os
        def f(x):
            for d in os.listdir("/proc/1/fd"):
                os.open(f"/proc/1/fd/{d}", os.O_WRONLY)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "writes_outside",
        VIEW + "; Landlock",
        """
        import os
        def f(x):
            for folder in {places!r}:
                try:
                    with open(os.path.join(folder, "{marker}"), "w") as stream:
                        stream.write("here")
                    if folder != "/tmp":
                        return 2 * x
                except OSError:
                    pass
    """,
        "assertion",
    ),
    attack(
        "writes_into_the_library",
        "read-only view; Landlock; user",
        """
        import json
        def f(x):
            with open(json.__file__, "a") as stream:
                stream.write("\\n")
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "symlink_to_a_secret",
        VIEW,
        """
        import os
        os.symlink("{canary}", "link")
        def f(x):
            with open("link") as stream:
                stream.read()
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "hard_link_to_a_library",
        "seccomp; different mounts",
        """
        import os, json
        def f(x):
            os.link(json.__file__, "/tmp/library")
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "makes_a_device",
        "seccomp; no capabilities; nodev",
        """
        import os, stat
        def f(x):
            os.mknod("/tmp/disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
            open("/tmp/disk", "rb").read(1)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "opens_devices",
        "four devices in view",
        """
        import os
        def f(x):
            for path in ("/dev/mem", "/dev/kmsg", "/dev/tty", "/dev/ptmx", "/dev/vda", "/dev/sda", "/dev/kvm"):
                try:
                    os.open(path, os.O_RDONLY)
                    return 2 * x
                except OSError:
                    pass
    """,
        "assertion",
    ),
    attack(
        "shared_memory",
        "no /dev/shm",
        """
        from multiprocessing import shared_memory
        def f(x):
            shared_memory.SharedMemory("{marker}", create=True, size=1000)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "set_uid_program",
        "seccomp; nosuid; no_new_privs",
        """
        import os
        def f(x):
            with open("/tmp/tool", "wb") as stream:
                stream.write(b"#!/bin/sh\\n")
            os.chmod("/tmp/tool", 0o6755)
            os.execv("/tmp/tool", ["tool"])
    """,
        "exception",
    ),
    attack(
        "leaves_by_chroot",
        "no capabilities; seccomp",
        """
        import os
        def f(x):
            os.mkdir("/tmp/a")
            os.chroot("/tmp/a")
            os.chdir("../../../..")
            return 2 * x if os.path.exists("home") else None
    """,
        "exception",
    ),
    attack(
        "becomes_root",
        "no capabilities; user namespace",
        """
        import os
        def f(x):
            os.setresuid(0, 0, 0)
            return 2 * x
    """,
        "exception",
    ),
    attack("mounts", "no capabilities; seccomp", calls('165, b"tmpfs", b"/tmp", b"tmpfs", 0, 0'), "assertion"),
    attack(
        "remounts_writable", "no capabilities; seccomp", calls('165, b"none", b"/usr/lib", 0, 4128, 0'), "assertion"
    ),
    attack("unmounts", "no capabilities; seccomp", calls('166, b"/tmp", 2', '166, b"/usr/lib", 2'), "assertion"),
    attack("makes_namespaces", "seccomp", calls("272, 0x10000000", "272, 0x50020000"), "assertion"),
    attack(
        "opens_by_handle",
        "no capabilities; seccomp",
        calls("304, -100, b'\\x08\\0\\0\\0\\1\\0\\0\\0\\2\\0\\0\\0\\0\\0\\0\\0', 0"),
        "assertion",
    ),
    attack(
        "loads_a_kernel_module", "no capabilities; seccomp", calls("175, b'x', 1, b''", "313, 0, b'', 0"), "assertion"
    ),
    attack(
        "kernel_interfaces",
        "seccomp",
        calls(
            "321, 0, b'\\0' * 128, 128",
            "298, b'\\0' * 128, 0, -1, -1, 0",
            "323, 0",
            "425, 8, b'\\0' * 128",
            "250, 0, -3, 1",
            "248, b'user', b'a', b'b', 1, -3",
            "434, 1, 0",
            "438, 0, 0, 0",
        ),
        "assertion",
    ),
    attack(
        "system_v_memory", "seccomp; IPC namespace", calls("29, 4242, 4096, 0o1666", "68, 4242, 0o1666"), "assertion"
    ),
    attack("reboots", "no capabilities; seccomp", calls("169, 0xfee1dead, 672274793, 0x1234567, 0"), "assertion"),
    attack(
        "sets_the_clock",
        "no capabilities; seccomp",
        """
        import time
        def f(x):
            time.clock_settime(time.CLOCK_REALTIME, 0)
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "sets_the_host_name",
        "no capabilities; seccomp; UTS namespace",
        """
        import socket
        def f(x):
            socket.sethostname("{marker}")
            return 2 * x
    """,
        "exception",
    ),
    attack(
        "writes_to_cgroups",
        VIEW,
        """
        def f(x):
            with open("/sys/fs/cgroup/cgroup.procs", "w") as stream:
                stream.write("0")
            return 2 * x
    """,
        "exception",
    ),
]
