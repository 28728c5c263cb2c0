"""What two runs that should be equal are compared by: everything but times, memory and the machine's state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TIMED = {"seconds", "milliseconds", "tokens_per_second", "memory_bytes", "created_at", "cost", "num_parts", "commits"}


def without_times(value: Any) -> Any:
    """The same data without anything that is a time or a memory size."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMED}
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return value


def record_file(results: Path) -> Path:
    """The one finished record of a results folder or its temporary sibling."""
    places = (results, results.with_name(f"temporary_{results.name}"))
    found = [path for place in places if place.is_dir() for path in place.glob("*.json")]
    assert len(found) == 1, found
    return found[0]


def outcome(results: Path) -> dict[str, Any]:
    """Record, curve, weights and samples of the one finished run, times aside."""
    path = record_file(results)
    payload = path.with_suffix("")
    curve = [without_times(json.loads(line)) for line in (payload / "curve.jsonl").read_text().splitlines()]
    files = {
        str(file.relative_to(payload)): file.read_bytes()
        for file in sorted(payload.rglob("*"))
        if file.is_file() and file.name not in ("progress.json", "curve.jsonl", "evaluation.json")
    }
    assert any(name.startswith("adapter/") for name in files) and any(name.endswith("samples.jsonl") for name in files)
    return {"record": without_times(json.loads(path.read_text())), "curve": curve, "files": files}


def curve(results: Path) -> list[dict[str, Any]]:
    """Every step of the one finished run."""
    lines = (record_file(results).with_suffix("") / "curve.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def trained(results: Path) -> dict[str, Any]:
    """The tensors that it ended with."""
    from safetensors.torch import load_file

    (path,) = (record_file(results).with_suffix("") / "adapter").glob("*.safetensors")
    return dict(load_file(path))


def predictions(results: Path) -> list[str]:
    """The texts or classes of all its evaluations, validations along the way included."""
    files = record_file(results).with_suffix("").glob("evaluations/*-*/samples.jsonl")
    lines = [json.loads(line)["prediction"] for path in files for line in path.read_text().splitlines()]
    return sorted(str(line.get("text", line.get("index"))) for line in lines)
