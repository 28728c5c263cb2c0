"""`UserError`: something the user can fix, shown with the fix and without a traceback.

Programming errors are not wrapped: they keep their traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, a missing file, an impossible combination: anything the user can mend.

    Args:
        message: What is wrong: names the file, the key and the value.
        fix: What to do about it, as an imperative sentence.
    """

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        self.message = message
        self.fix = fix
        super().__init__(message if fix is None else f"{message}\n  fix: {fix}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest in spelling to `name`, or None when nothing is close."""
    options = sorted(known)
    lowered = {option.lower(): option for option in options}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


def unknown_name(what: str, name: str, known: Iterable[str], *, where: str = "") -> UserError:
    """A uniform error for a name that is not among the `known` ones, naming the nearest."""
    options = sorted(known)
    guess = nearest(name, options)
    place = f"{where}: " if where else ""
    shown = ", ".join(options[:40]) + (", ..." if len(options) > 40 else "")
    fix = f"did you mean '{guess}'?" if guess else f"use one of: {shown}"
    return UserError(f"{place}unknown {what} '{name}'", fix=fix)
