"""Poly: peft's routers need the task of every row; a run has one task, which is the first.

Ponti et al. 2023, Combining parameter-efficient modules for task-level generalisation (https://arxiv.org/abs/2202.13914).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.protocols import Method


def forward_inputs(batch: Any) -> Mapping[str, Any]:
    """Task 0 for every row."""
    ids = batch.input_ids
    return {"task_ids": ids.new_zeros(len(ids))}


PLUGIN = Method(
    forward_inputs=forward_inputs,
    no_checkpointing="its routers know a row's task during the forward pass only, not when activations are made again",
)
