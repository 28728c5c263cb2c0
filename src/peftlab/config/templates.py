"""Prompt templates: plain `{name}` fields and nothing else, so that no template can reach into an object."""

from __future__ import annotations

import string
from collections.abc import Mapping
from functools import cache
from typing import Any


@cache
def template_fields(template: str) -> tuple[str, ...]:
    """Names used by a template, in order; only plain `{name}` fields are allowed.

    Raises:
        ValueError: An attribute, an index, a conversion or a format spec, which could reach into objects.
    """
    fields = []
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}") from None
    for _, name, spec, conversion in parsed:
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise ValueError(f"template {template!r}: only plain fields like {{question}} are allowed, not {{{name}}}")
        fields.append(name)
    return tuple(fields)


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Put values into a template's plain `{name}` fields; values are never parsed as templates."""
    pieces = []
    for literal, name, _, _ in string.Formatter().parse(template):
        pieces.append(literal)
        if name is not None:
            pieces.append(str(values[name]))
    return "".join(pieces)
