"""A Persona-Chat row to a persona, a history and a reply: B is the speaker whose persona is known and who replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.errors import UserError


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """`personality`, `history` and the last of `candidates` as text; `conversation` tells the rows of one apart."""
    history, candidates = row.get("history"), row.get("candidates")
    if not isinstance(history, list) or not history or not isinstance(candidates, list) or not candidates:
        raise UserError(f"no conversation with a reply: {str(dict(row))[:200]}", fix="is this Persona-Chat's format?")
    speakers = ("A", "B") if len(history) % 2 else ("B", "A")  # whoever is not about to reply spoke last
    said = [f"{speakers[number % 2]}: {turn}" for number, turn in enumerate(history)]
    persona = "\n".join(f"B's persona: {line}" for line in row.get("personality") or ())
    return {
        "persona": persona,
        "history": "\n".join(said),
        "reply": str(candidates[-1]),
        "conversation": row.get("conv_id"),
    }
