"""Predictions as an evaluation's folder keeps them. Reads files; grades nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftlab.errors import UserError
from peftlab.protocols import Prediction
from peftlab.records.record import loads

SAMPLES = "samples.jsonl"
TRUNCATED = "truncated"
"""Note of an evaluation: items that lost text at `data.max_length`, or whose prompt left no room for an answer."""

AGREEMENT = "agreement"
"""Note of an evaluation: how far the engine that made it agreed with the reference engine."""


def lasting(notes: Mapping[str, Any]) -> dict[str, Any]:
    """The notes on how predictions were made: they stay when the predictions are graded again."""
    return {name: notes[name] for name in (TRUNCATED, AGREEMENT) if name in notes}


def samples(folder: Path) -> list[dict[str, Any]] | None:
    """One object an item; None where none were stored.

    Raises:
        UserError: The file is damaged.
    """
    file = folder / SAMPLES
    if not file.is_file():
        return None
    try:
        return [dict(loads(line)) for line in file.read_text(encoding="ascii").splitlines()]
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged", fix=f"move the folder {folder} away to evaluate again") from None


def prediction(sample: dict[str, Any]) -> Prediction:
    """What the model said about the item of a sample."""
    return _said(sample["prediction"])


def _said(plain: Mapping[str, Any]) -> Prediction:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in plain.items() if name != "more"
    }
    return Prediction(**fields, more=tuple(map(_said, plain.get("more", ()))))
