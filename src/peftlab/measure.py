"""Clocks, memory, parameter counts, and the environment snapshot of a record. Decides nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

PACKAGES = (
    *("peftlab", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy"),
    *("datasets", "bitsandbytes", "torchao"),
)
RESUME_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy")
"""Versions that a resume checks: another version of these may compute other bytes."""


def now() -> str:
    """The current time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


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


def allocated_bytes() -> int | None:
    """Bytes of living tensors on a GPU; None on a CPU, which has no allocator to ask."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else None


def memory_kind() -> str:
    """What the memory numbers are."""
    return "allocator reserved bytes" if torch.cuda.is_available() else "resident set size of the process"


def summarise_memory(
    samples: Sequence[int], peak: int | None, *, before_model: int | None = None
) -> dict[str, float] | None:
    """Average, 99th percentile and maximum over steps, the true peak between them, and the level before the model."""
    if not samples:
        return None
    values = np.asarray(samples, dtype=np.float64)
    summary = {
        "average": float(values.mean()),
        "percentile_99": float(np.percentile(values, 99)),
        "maximum": float(max(values.max(), peak or 0)),
    }
    if before_model is not None:
        summary["before_model"] = float(before_model)
    return {name: round(value) for name, value in summary.items()}


def plain_config(config: Any) -> dict[str, Any] | None:
    """A peft config with all its defaults as plain data, sets as sorted lists; None: there is no adapter."""
    return None if config is None else {name: _plain(value) for name, value in config.to_dict().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value), key=str)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


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


def commits(packages: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """The git commit that a package is used from; None for one that was installed from a built distribution."""
    return {package: _commit(package) for package in packages}


def _commit(package: str) -> str | None:
    """What pip noted when it installed from a repository (PEP 610), else the commit of the source tree it runs from.

    A package is of a tree only when git tracks its file: an environment may lie within somebody's repository.
    """
    try:
        noted = json.loads(importlib.metadata.distribution(package).read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        return None
    commit = noted.get("vcs_info", {}).get("commit_id")
    if commit is not None:
        return str(commit)
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).resolve()
    tracked = _git(path.parent, "ls-files", "--error-unmatch", "--", path.name)
    return _git(path.parent, "rev-parse", "HEAD") if tracked else None


def environment() -> dict[str, Any]:
    """Versions, hardware and threads, as provenance of a record."""
    return {
        "versions": versions(),
        "commits": commits(),
        "python": platform.python_version(),
        "system": {name: getattr(platform.uname(), name) for name in ("system", "release", "version", "machine")},
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch_build": torch.__config__.show(),
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
    """Whether other work keeps the machine busy: a one-minute load above this process's own threads and a half."""
    return os.getloadavg()[0] > torch.get_num_threads() + 0.5


def git_snapshot(folder: Path, *, branch: str = "main", apart: Sequence[Path] = ()) -> dict[str, Any]:
    """Branch, commit and dirtiness of the work tree that holds `folder`; `category` is `main` on the named branch.

    Dirty means a changed tracked file, or an untracked file in the experiment's own folder; what lies below one of the
    folders `apart` (those of results) does not count. Outside a work tree all is null and the category is `test`.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return {"branch": None, "commit": None, "dirty": None, "category": "test"}
    current = _git(folder, "symbolic-ref", "--short", "-q", "HEAD")
    inside = [one.resolve().relative_to(top) for one in apart if one.resolve().is_relative_to(top)]
    left_out = [f":(top,exclude,literal){one.as_posix()}" for one in inside]
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":(top)", *left_out)
    untracked = _git(folder, "ls-files", "--others", "--exclude-standard", "--", ".", *left_out)
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
