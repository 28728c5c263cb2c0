"""Clocks, memory, parameter counts, and the environment snapshot of a record. Decides nothing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

PACKAGES = ("peftlab", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")
RESUME_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy")
"""Versions that a resume checks: another version of these may compute other bytes."""


def now() -> str:
    """The current time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Split:
    """Wall seconds by phase: `with split("train"): ...`; phases may be entered again."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the body's wall time to `phase`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - start)

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds measured elsewhere."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


def reset_peak_memory() -> str | None:
    """Start a new peak. Returns why the process's peak could not be reset, or None."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        return f"peak memory cannot be reset here ({error.strerror}); the peak covers the whole process"
    return None


def current_memory_bytes() -> int:
    """Bytes in use: reserved by the allocator on a GPU, resident size of the process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.memory_reserved()
    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes() -> int | None:
    """Peak since the reset, or None where the system does not tell."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def memory_kind() -> str:
    """What the memory numbers are."""
    return "allocator reserved bytes" if torch.cuda.is_available() else "resident set size of the process"


def summarise_memory(samples: Sequence[int], peak: int | None) -> dict[str, float] | None:
    """Average, 99th percentile and maximum over steps, and the true peak between them."""
    if not samples:
        return None
    values = np.asarray(samples, dtype=np.float64)
    summary = {
        "average": float(values.mean()),
        "percentile_99": float(np.percentile(values, 99)),
        "maximum": float(max(values.max(), peak or 0)),
    }
    return {name: round(value) for name, value in summary.items()}


# ------------------------------------------------------------------------------------------------------ provenance


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Installed versions; None for a package that is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def environment() -> dict[str, Any]:
    """Versions, hardware and threads, as provenance of a record."""
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "system": {name: getattr(platform.uname(), name) for name in ("system", "release", "machine")},
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def load_average_shared() -> bool:
    """Whether other work keeps the machine busy: a one-minute load above its cores."""
    cores = os.cpu_count() or 1
    return os.getloadavg()[0] > cores + 0.5


def git_snapshot(folder: Path, *, branch: str = "main") -> dict[str, Any]:
    """Branch, commit and dirtiness of the work tree that holds `folder`; `category` is `main` on the named branch.

    Dirty means a changed tracked file, or an untracked file in the experiment's own folder; results do not count.
    Outside a work tree everything is null and the category is `test`.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return {"branch": None, "commit": None, "dirty": None, "category": "test"}
    current = _git(folder, "symbolic-ref", "--short", "-q", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    untracked = _git(folder, "ls-files", "--others", "--exclude-standard", "--", ".")
    return {
        "branch": current,
        "commit": _git(folder, "rev-parse", "HEAD"),
        "dirty": bool(changed) or bool(untracked),
        "category": "main" if current == branch else "test",
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
