"""Multitask prompt tuning: peft's forward needs the task of every row; a run has one task, which is the first.

Wang et al. 2023 (https://arxiv.org/abs/2303.02861): a prompt shared by the tasks, times a low-rank matrix of each task.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from peftlab.errors import UserError
from peftlab.protocols import Method

_PATH = "prompt_tuning_init_state_dict_path"


def forward_inputs(batch: Any) -> Mapping[str, Any]:
    """Task 0 for every row."""
    ids = batch.input_ids
    return {"task_ids": ids.new_zeros(len(ids))}


def wrap(base: Any, config: Any, make: Any = None) -> Any:
    """peft's own, unless it would read a pickle.

    Raises:
        UserError: The prompts to start from are no safetensors.
    """
    path = getattr(config, _PATH)
    if path is not None:
        _check_file(path)
    return make(config)


def _check_file(path: str) -> None:
    if not path.endswith(".safetensors"):
        raise UserError(
            f"{_PATH} = '{path}' is no .safetensors file; peft would read it as a pickle, which can run code",
            fix="write the tensors prompt_embeddings, prefix_task_cols and prefix_task_rows as safetensors",
        )
    if not Path(path).is_file():
        raise UserError(f"{_PATH}: there is no file '{path}'", fix="name the file of a trained multitask prompt")
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise UserError(f"{_PATH}: '{path}' is damaged: {error}", fix="write it again") from error


PLUGIN = Method(wrap=wrap, forward_inputs=forward_inputs)
