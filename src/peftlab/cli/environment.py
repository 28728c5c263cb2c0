"""`peftlab env`: what a bug report needs. Reads versions from package metadata, so no model library is loaded."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from peftlab.cli import tables, units

PACKAGES = (
    "peftlab",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "pydantic",
    "typer",
    "rich",
    "datasets",
    "reasoning-gym",
    "gguf",
    "bitsandbytes",
    "torchao",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
_SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")


def show(*, as_json: bool) -> None:
    """Print the environment as `name  value` lines or as JSON."""
    sections = {"versions": versions(), "machine": machine(), "variables": variables()}
    if as_json:
        tables.write_json(sections)
        return
    tables.write_pairs({**sections["versions"], **sections["machine"], **sections["variables"]})


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of the packages that can change a result or a message."""
    return {name: version(name) or "not installed" for name in PACKAGES}


def machine() -> dict[str, str]:
    """Python, system, processor, memory and accelerators."""
    import psutil

    return {
        "python": f"{platform.python_version()} ({sys.implementation.name})",
        "system": platform.platform(),
        "processor": _processor(),
        "cores": _cores(),
        "memory": units.size(psutil.virtual_memory().total),
        "accelerators": _accelerators(),
    }


def variables() -> dict[str, str]:
    """Variables that steer threads and peftlab; one that may hold a secret is left out, name and value."""
    names = [*THREAD_VARIABLES, *sorted(name for name in os.environ if name.startswith("PEFTLAB_"))]
    shown = [name for name in names if not any(word in name.upper() for word in _SECRET_WORDS)]
    return {name: os.environ.get(name, "(not set)") for name in shown}


def _cores() -> str:
    if sys.platform == "linux":
        return f"{os.cpu_count()}, of which this process may use {len(os.sched_getaffinity(0))}"
    return str(os.cpu_count())


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _accelerators() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "none found (no nvidia-smi)"
    query = [command, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: nvidia-smi failed ({type(error).__name__})"
    return answer.stdout.strip() or "none"
