"""An E2E row with its references: training rows list none, there the row's own text is the one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """`references`, where it is empty or absent, becomes the row's `target` alone."""
    return {**row, "references": list(row.get("references") or [row["target"]])}
