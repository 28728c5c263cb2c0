"""What the tests of starts share: experiments that ask for one, a few steps of training, logits on a fixed batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import toy
from peftlab.config import loading
from peftlab.config.spec import RunSpec
from peftlab.loop import preparation, training
from peftlab.modelling.models import Built
from peftlab.rows import data
from peftlab.scores import scoring

ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_rslora": True}
"""A scaling of 3, so that one which is left out or counted twice shows."""

ROWS: dict[str, dict[str, Any]] = {
    "corda": {"rows": 16},
    "lora_ga": {"rows": 16},
    "eva": {"rows": 16, "batch_size": 8},
}


@dataclass
class Trained:
    """A run of a few steps, with the logits before the adapter, with it, and after training."""

    spec: RunSpec
    built: Built
    before: torch.Tensor
    begun: torch.Tensor
    after: torch.Tensor
    facts: dict[str, Any]


def spec_of(
    root: Path, start: str, *, architecture: str = "llama", adapter: dict[str, Any] | None = None, **groups: Any
) -> RunSpec:
    """An experiment that starts so."""
    here = {**ADAPTER, "target_modules": toy.LINEARS[architecture], "init_lora_weights": start, **(adapter or {})}
    groups = {"calibration": ROWS.get(start, {}), **groups}
    name = f"lora/{len(list(root.glob('experiments/lora/*')))}"
    return loading.load(toy.write_experiment(root, name=name, architecture=architecture, adapter=here, **groups))


def trained(spec: RunSpec) -> Trained:
    """Train it, as the main job does."""
    rows, base = data.load(spec), scoring.load_base(spec)
    before = logits(base.model)
    ready = preparation.prepare(spec, rows, base)
    begun = logits(ready.built.model)
    for _ in training.steps(ready.built, ready.stream, spec, ready.state):
        pass
    return Trained(spec, ready.built, before, begun, logits(ready.built.model), dict(ready.facts))


def logits(model: Any) -> torch.Tensor:
    """Of a fixed batch, in float32."""
    model.eval()
    ids = torch.arange(3 * 17).reshape(3, 17) % 90 + 7
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
    return found
