"""Saving what was trained, and loading it again onto a fresh base. Writes no pickle, trains nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError

from peftlab import randomness
from peftlab.atomic import write_error
from peftlab.errors import UserError
from peftlab.models import LOADING_ERRORS, Built, bare, built_on, kind_of, load, method_of, quiet_peft
from peftlab.slot import ran_out_of_memory
from peftlab.spec import RunSpec

LAST = "last"
"""Name of a snapshot of the last step, where another step's weights are the result."""


def save(built: Built, folder: Path) -> None:
    """Write what was trained: a peft adapter, a method's own files, or the whole model. No pickle is written.

    Raises:
        OSError: The disk is full or not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if built.method.save is not None:
            built.method.save(built.model, folder)
        elif built.adapter is not None:
            with quiet_peft():
                built.model.save_pretrained(str(folder))
            (folder / "README.md").unlink(missing_ok=True)
            _sort_config(folder / "adapter_config.json")
        else:
            built.model.save_pretrained(str(folder))
    except SafetensorError as error:
        raise write_error(error, folder) from error


def _sort_config(path: Path) -> None:
    """peft writes sets in hash order, which differs from process to process; sorted, equal runs give equal bytes."""
    plain = json.loads(path.read_text(encoding="utf-8"))
    for key, value in plain.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            plain[key] = sorted(value)
    path.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_trained(spec: RunSpec, folder: Path) -> Built:
    """A fresh base with the saved adapter on it (or the saved full model), ready for evaluation.

    Raises:
        UserError: The saved weights are missing or damaged.
    """
    import peft

    kind = kind_of(spec)
    if not folder.is_dir():
        raise UserError(f"no saved weights at {folder}", fix="they were cleaned; run the experiment again with --rerun")
    if spec.adapter is None:
        return bare(load(spec.model, kind, labels=spec.task.labels, seed=spec.seed, weights=folder))
    base = load(spec.model, kind, labels=spec.task.labels, seed=spec.seed)
    method = method_of(spec.adapter)
    try:
        with quiet_peft(), randomness.seeded(spec.seed, "adapter"):
            if method.load is not None:
                model = method.load(base.model, folder)
            else:
                model = peft.PeftModel.from_pretrained(
                    base.model, str(folder), autocast_adapter_dtype=spec.model.autocast_adapter_dtype
                )
    except LOADING_ERRORS as error:
        if ran_out_of_memory(error):
            raise
        raise UserError(f"cannot load the saved adapter in {folder}: {error}", fix="run again with --rerun") from error
    config = None if method.load is not None else model.peft_config["default"]
    return built_on(base, model, config, method, frozenset(), base.facts)


def saved_bytes(folder: Path) -> int:
    """Bytes of the weight files in a saved folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def discard(folder: Path) -> None:
    """Remove a saved folder if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
