"""What an invariant says: a verdict with its figure, what was found, and what to do about it.

Also what is stated about methods beforehand (`methods/stated.yaml`). Measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from peftlab.config.settings import read_yaml
from peftlab.config.spec import RunSpec, variants_of

Verdict = Literal["exact", "within", "stated", "refused", "exempt", "broken"]
"""exact: to the last bit. within: no further apart than the figure `allowed`. stated: otherwise, on purpose and with
its reason. refused: the library or peftlab says no, with its reason. exempt: the question does not arise."""

ROUNDING: Mapping[str, float] = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 0.08}
"""How far apart two ways to the same logits may be, as a share of the largest logit."""

_STATED = Path(__file__).parent.parent / "methods" / "stated.yaml"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One invariant's answer.

    Attributes:
        name: The invariant.
        verdict: See `Verdict`.
        text: What was found, as a sentence.
        figure: The largest difference that was measured, where one was.
        allowed: The difference that would have been let pass.
        fix: What to do, for `broken`.
    """

    name: str
    verdict: Verdict
    text: str
    figure: float | None = None
    allowed: float | None = None
    fix: str | None = None


def compared(name: str, figure: float, allowed: float, *, what: str, fix: str, stated: str | None = None) -> Finding:
    """The finding of a difference between two things that should be equal.

    A difference beyond `allowed` is broken, unless the reason for it is `stated`.
    """
    if figure == 0:
        return Finding(name=name, verdict="exact", text=f"{what}: equal to the last bit", figure=figure)
    if figure <= allowed:  # never true for NaN
        text = f"{what}: within {allowed:.1e} ({figure:.1e})"
        return Finding(name=name, verdict="within", text=text, figure=figure, allowed=allowed)
    text = f"{what}: {figure:.1e} apart"
    if stated is not None and not math.isnan(figure):
        return Finding(name=name, verdict="stated", text=f"{text}, on purpose: {stated}", figure=figure)
    return Finding(name=name, verdict="broken", text=text, figure=figure, allowed=allowed, fix=fix)


def said(name: str, verdict: Verdict, text: str, *, fix: str | None = None) -> Finding:
    """A finding without a figure."""
    return Finding(name=name, verdict=verdict, text=text, fix=fix)


def reason_of(error: BaseException) -> str:
    """The first line of an error, with its type where the line alone would not be understood."""
    line = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


@cache
def _all_stated() -> Mapping[str, Any]:
    return read_yaml(_STATED)


def stated(spec: RunSpec, what: str) -> Any:
    """What `methods/stated.yaml` says of a method: under its own name, or under that of the method it is a variant of.

    The name that fits best wins: the method's own before any beginning of it. Each variant counts by itself too, and a
    key of the adapter's config makes one: `<peft_type>_<key>`.
    """
    adapter = spec.adapter or {}
    parts = [*variants_of(adapter), *(key for key, value in adapter.items() if value)]
    methods = [spec.method, *(f"{str(adapter['peft_type']).lower()}_{part}" for part in parts)]
    fitting = {name for name in _all_stated() for one in methods if one == name or one.startswith(f"{name}_")}
    for name in sorted(fitting, key=len, reverse=True):
        if what in _all_stated()[name]:
            return _all_stated()[name][what]
    return None
