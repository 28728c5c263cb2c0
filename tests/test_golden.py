"""Frozen facts: keys, defaults, losses and old records. `make golden` writes them anew; the commit says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from golden import regenerate
from peftlab.records.record import VERSION, from_json, to_json

FOLDER = Path(__file__).parent / "golden"


def golden(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def test_keys_are_what_they_were() -> None:
    """A changed key orphans results: a new setting needs a baseline, a changed meaning needs a new PROTOCOL."""
    assert regenerate.keys() == golden("keys.json")


def test_defaults_and_baselines_are_what_they_were() -> None:
    """A changed default is fine with its old baseline kept: `setting(new, baseline=old)`."""
    assert regenerate.defaults() == golden("defaults.json")


def test_a_default_that_moved_keeps_its_baseline_out_of_the_hash() -> None:
    for name, entry in golden("defaults.json").items():
        assert entry["key"] in ("train", "eval", "none"), name


def test_losses_are_what_they_were() -> None:
    """Byte for byte on a known CPU and library set, to 1e-4 elsewhere."""
    known = golden("losses.json")
    found = regenerate.losses()
    here = regenerate.platform_name()
    if here in known:
        assert found == known[here]
    else:
        for name, losses in next(iter(known.values())).items():
            assert found[name] == pytest.approx(losses, rel=1e-4), name


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_old_records_stay_readable(version: int) -> None:
    text = (FOLDER / f"record-{version}.json").read_text()
    record = from_json(text, where="golden")
    assert record.status == "finished" and record.evaluations
    if version == VERSION:
        assert to_json(record) == text.rstrip("\n")
