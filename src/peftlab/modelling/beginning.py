"""Which start an experiment asks for, found by the value of its adapter's `init_*` key, and whether it can work.

Starts nothing (`adapting.py` does) and imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftlab.config.spec import ADAPTER_FILE, RunSpec
from peftlab.errors import UserError
from peftlab.protocols import Start, find, names

FROM_TEXT = "kv_prefix_text"
"""The setting of group `model` that is a start's name."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A start that an experiment asks for; `key` is the adapter's key that says so, or None where a setting does."""

    name: str
    key: str | None
    start: Start

    @property
    def needs_calibration(self) -> bool:
        """Whether it cannot begin without a `protocols.Calibration`."""
        return self.start.reads_rows or self.key is None


def asked(spec: RunSpec) -> Asked | None:
    """The start that needs more than peft's own wrapping; None: there is none, or peft has all that it needs."""
    if spec.model.kv_prefix_text is not None:
        return Asked(name=FROM_TEXT, key=None, start=find("starts", FROM_TEXT))
    if spec.adapter is None:
        return None
    known = [name for name in names("starts") if name != FROM_TEXT]
    for key, value in spec.adapter.items():
        if key.startswith("init_") and isinstance(value, str):
            name = re.sub(r"_niter_\d+$", "", value.lower())
            start: Start | None = find("starts", name) if name in known else None
            if start is not None and start.peft_type == str(spec.adapter["peft_type"]).upper():
                return Asked(name=name, key=key, start=start)
    return None


def without(spec: RunSpec, config: Any, model: Any) -> None:
    """Make the peft config as if the start had not been asked for: what only asks for shapes needs no decomposition.

    Raises:
        UserError: The start cannot begin on this model's layers.
    """
    found = asked(spec)
    if found is not None and found.key is not None:
        found.start.fits(model, config)
        setattr(config, found.key, True)


def check(spec: RunSpec) -> None:
    """See that the start can work, as far as settings tell.

    Raises:
        UserError: It cannot.
    """
    found = asked(spec)
    if found is None:
        return
    kind = "classify" if spec.task.has_head else "causal"
    adapter: Mapping[str, Any] = spec.adapter or {}
    written = adapter[found.key] if found.key is not None else ""
    if written != written.lower():
        raise UserError(f"{ADAPTER_FILE}: {found.key} = {written!r}", fix=f"write it as {written.lower()!r}")
    try:
        found.start.check(adapter, kind, spec.calibration)
    except UserError as error:
        place = f"{ADAPTER_FILE}: " if found.key is not None else ""
        raise UserError(f"{place}{error.message}", fix=error.fix) from error
    if found.key is not None and adapter.get("target_parameters"):
        raise UserError(
            f"{ADAPTER_FILE}: {found.key} = {written!r} begins on modules, and target_parameters names single weights: "
            "peft would begin those so too, and neither keep nor load what that makes of the base",
            fix=f"name modules in target_modules instead, or leave {found.key} out",
        )
    if found.start.changes_base and found.start.share is None and spec.save.output_dir is not None:
        raise UserError(
            f"save.output_dir = {spec.save.output_dir}: the adapter of {found.key} = {written!r} belongs on the base "
            "that it changed, and there is no form of it that peft alone loads",
            fix="set save.output_dir=null (the results keep the adapter), or choose another start",
        )
    if found.start.changes_base and spec.quant.method is not None:
        raise UserError(
            f"{ADAPTER_FILE}: {found.key} = {written!r} changes the base's weights, which "
            f"quant.method = {spec.quant.method} keeps rounded: what is changed would be rounded again",
            fix="set quant.method=null, or choose a start that leaves the base as it is",
        )
