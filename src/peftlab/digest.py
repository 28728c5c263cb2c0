"""Content digests: of plain values (canonical JSON) and of files.

Says nothing about *what* goes into a key; `spec.py` does.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

DIGEST_LENGTH = 16

_file_cache: dict[tuple[str, int, int], str] = {}


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; refuses NaN and anything that is not plain data."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:DIGEST_LENGTH]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, remembered by path, size and modification time."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _file_cache:
        with open(path, "rb") as file:
            _file_cache[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _file_cache[key]


def folder_digest(folder: Path, suffixes: tuple[str, ...]) -> str:
    """SHA-256 over names and contents of the files in `folder` with one of `suffixes`, not recursive."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.endswith(suffixes))
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.name}\0{file_digest(path)}\n".encode())
    return whole.hexdigest()
