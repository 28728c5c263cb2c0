"""What one program may use; not how that is enforced."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use, and its tests as much again.

    CPU time is what decides, because it hardly depends on what else the machine does. Wall time only ends programs that
    wait.

    Attributes:
        cpu_seconds: CPU time of the process and its threads, its start included.
        wall_seconds: Time on the clock.
        memory_bytes: Address space.
        output_bytes: What it may print, and the largest value that may cross between program and tests.
        file_bytes: The working folder, all files together.
        processes: Threads and processes at a time.
    """

    cpu_seconds: float = 20.0
    wall_seconds: float = 180.0
    memory_bytes: int = 1024 * MIB
    output_bytes: int = 4 * MIB
    file_bytes: int = 16 * MIB
    processes: int = 32
