"""Ways to start an adapter that read training rows first. Nothing reads them yet, so they are known and refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftlab.settings import read_yaml

_STARTS = Path(__file__).parent / "methods" / "starts.yaml"


def unready(adapter: Mapping[str, Any] | None) -> str | None:
    """Why an adapter cannot start as it asks to, or None. Some would quietly start as if they had not asked."""
    if adapter is None:
        return None
    known = read_yaml(_STARTS).get(str(adapter["peft_type"]).lower(), {})
    for key, values in known.items():
        if isinstance(adapter.get(key), str) and adapter[key].lower() in values:
            return f"{key} = {adapter[key]!r} reads training rows before it starts, which this version cannot do yet"
    return None
