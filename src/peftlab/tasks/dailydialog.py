"""A DailyDialog row to a history and a reply: two speakers who take turns, A the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.errors import UserError

SPEAKERS = ("A", "B")


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """`utterances` (or `dialog`, as other copies call it) to `history`, `speaker` of the last turn, and `reply`."""
    turns = row.get("utterances") or row.get("dialog")
    if not isinstance(turns, list) or len(turns) < 2:
        raise UserError(f"no conversation of two turns: {str(dict(row))[:200]}", fix="mend the row, or leave it out")
    said = [f"{SPEAKERS[number % 2]}: {' '.join(str(turn).split())}" for number, turn in enumerate(turns)]
    speaker, _, reply = said[-1].partition(": ")
    return {"history": "\n".join(said[:-1]), "speaker": speaker, "reply": reply}
