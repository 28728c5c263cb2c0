"""General texts that forgetting is measured on: which there are (texts.yaml), and their rows.

Turns no text into tokens and measures nothing (`evaluation.py` does).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from peftlab.config.settings import Settings, read_yaml, setting, validated
from peftlab.config.source import Source
from peftlab.errors import UserError, unknown_name
from peftlab.rows import sources

FILE = Path(__file__).parent / "texts.yaml"
FROM_HUB = "hub:"
"""Prefix of a text's name by which a user asks for the network, should no mirror hold the text."""


class Text(Settings):
    """A general text: where its rows lie, and how they are measured.

    A name means one text for ever, since its numbers are compared over years. What changes gets another name.
    """

    source: Source = setting(..., "where the rows lie")
    rows: int | None = setting(None, "the first so many rows; null: all", gt=0)
    row_tokens: int | None = setting(
        None, "each row by itself, cut at so many tokens; null: joined, in windows of one length", gt=1
    )


@cache
def available() -> Mapping[str, Text]:
    """The texts that can be measured, by name."""
    return {name: validated(Text, plain, where=f"{FILE} [{name}]") for name, plain in read_yaml(FILE).items()}


def named(name: str | None) -> Text | None:
    """The text that `data.forgetting` names; None: none is to be measured.

    Raises:
        UserError: No text of that name.
    """
    if name is None:
        return None
    plain = name.removeprefix(FROM_HUB)
    if plain not in available():
        known = [*available(), *(FROM_HUB + text for text in available())]
        raise unknown_name("text", name, known, where="data.forgetting")
    return available()[plain]


def for_forgetting(name: str | None) -> tuple[list[str], dict[str, Any]] | str:
    """General text that is in no task: its rows with facts, or why there is none.

    The text is measured by default, so its name alone asks for no network: it comes from the mirror, or from the hub
    when the name says so (`hub:wikitext2`). No other text ever stands in for it.

    Raises:
        UserError: No such text, one that cannot be read, or too few rows of it.
    """
    text = named(name)
    if name is None or text is None:
        return "data.forgetting is null"
    plain, source = name.removeprefix(FROM_HUB), text.source
    from_hub = name.startswith(FROM_HUB)
    table = sources.read(source, first=text.rows) if from_hub else sources.read_mirror(source)
    if table is None:
        return (
            f"{plain} is not at hand: {sources.MIRROR_VARIABLE} names no mirror that holds {source.dataset}; "
            f"data.forgetting={FROM_HUB}{plain} would ask the hub"
        )
    rows = table.rows[: text.rows]
    if text.rows is not None and len(rows) < text.rows:
        raise UserError(
            f"data.forgetting = {name}: it is the first {text.rows} rows of {source.dataset}, {len(rows)} are there",
            fix="fetch all of them, or set data.forgetting=null",
        )
    written = [str(row["text"]) for row in rows]
    size = {"rows": len(written), "characters": sum(map(len, written)), "row_tokens": text.row_tokens}
    return written, {"text": plain, "source": dict(table.origin), "partial": table.partial, **size}
