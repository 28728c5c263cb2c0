"""Sorts the words of a command line into paths and `key=value` settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftlab.config.loading import load, parse_overrides
from peftlab.config.spec import RunSpec

_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*=")


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths and names on one side, settings on the other. What exists as a file is never a setting.

    Example:
        >>> split(["experiments/lora/r=8", "seed=1"])
        (['experiments/lora/r=8'], ['seed=1'])
    """
    settings = [word for word in words if _SETTING.match(word) and not Path(word).exists()]
    return [word for word in words if word not in settings], settings


def load_spec(path: str | Path, overrides: Mapping[str, Any], dialect: str | None = None) -> RunSpec:
    """`loading.load` with `task` and `seed` taken out of the overrides."""
    rest = dict(overrides)
    return load(path, task=rest.pop("task", None), seed=rest.pop("seed", None), overrides=rest, dialect=dialect)


def parse(settings: Sequence[str]) -> dict[str, Any]:
    """Settings as dotted keys to values."""
    return parse_overrides(list(settings))
