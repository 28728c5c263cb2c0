"""What needs a GPU. Skips with a reason elsewhere; nothing here was run where the other tests are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import toy
from golden import regenerate
from peftlab.config import loading
from peftlab.events import Step
from peftlab.job import runs
from peftlab.records.store import RunStore

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_run_on_the_gpu_finishes_and_learns(tmp_path: Path, dtype: str) -> None:
    folder = toy.write_experiment(tmp_path, model={"dtype": dtype}, train={"max_steps": 30})
    record = runs.run(loading.load(folder), RunStore(tmp_path / "results"))
    assert record.status == "finished" and record.provenance["accelerator"] != "cpu"
    assert record.curve["loss"][-1] < record.curve["loss"][0]
    assert record.cost.memory_kind == "allocator reserved bytes"


def test_losses_are_those_of_the_cpu(tmp_path: Path) -> None:
    """Float32 losses of the golden cases, to the rounding of another processor."""
    known = regenerate.golden_losses()
    found = regenerate.losses()
    for name, losses in found.items():
        assert losses == pytest.approx(known[name], rel=1e-3), name


def test_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    events = runs.events(loading.load(folder), RunStore(tmp_path / "results"))
    for event in events:
        if isinstance(event, Step) and event.step == 3:
            break
    events.close()  # type: ignore[attr-defined]
    assert runs.run(loading.load(folder), RunStore(tmp_path / "results")).status == "finished"
