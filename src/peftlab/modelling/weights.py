"""Saving what was trained, and loading it again onto a fresh base. Writes no pickle, trains nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peftlab import own
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.modelling import beginning, randomness
from peftlab.modelling.adapting import adapter_config, adapter_place, method_of, quiet_peft
from peftlab.modelling.models import LOADING_ERRORS, UNKNOWN_BUDGET, Base, Built, bare, built_on, kind_of, load
from peftlab.records.atomic import write_error
from peftlab.records.slot import ran_out_of_memory

START_FILE = "start.safetensors"
"""Beside an adapter whose start changed the base: what those weights are made from again."""

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
            with quiet_peft():
                built.method.save(built.model, folder)
            _tidy(folder)
        elif built.method.config is not None:
            own.save(built.model, built.adapter, folder)
        elif built.adapter is not None:
            with quiet_peft():
                built.model.save_pretrained(str(folder))
            _tidy(folder)
            if built.initial:
                save_file(dict(built.initial), str(folder / START_FILE))
        else:
            built.model.save_pretrained(str(folder))
    except SafetensorError as error:
        raise write_error(error, folder) from error


def _tidy(folder: Path) -> None:
    """peft writes sets in hash order, which differs from process to process; sorted, equal runs give equal bytes."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    if not path.is_file():
        return
    plain = json.loads(path.read_text(encoding="utf-8"))
    for key, value in plain.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            plain[key] = sorted(value)
    path.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_trained(spec: RunSpec, folder: Path, *, base: Base | None = None) -> Built:
    """A fresh base with the saved adapter on it (or the saved full model), ready for evaluation.

    Args:
        spec: The run.
        folder: Where its weights lie.
        base: A clean base of that run, which the adapter is put on; None: it is loaded.

    Raises:
        UserError: The saved weights are missing or damaged.
    """
    kind = kind_of(spec)
    if not folder.is_dir():
        raise UserError(f"no saved weights at {folder}", fix="they were cleaned; run the experiment again with --rerun")
    if spec.adapter is None:
        return bare(load(spec.model, kind, labels=spec.task.labels, seed=spec.seed, weights=folder))
    _require_safetensors(folder)
    base = base or load(spec.model, kind, labels=spec.task.labels, seed=spec.seed, quant=spec.quant)
    method = method_of(spec.adapter)
    config = None
    try:
        with quiet_peft(), randomness.seeded(spec.seed, "adapter"):
            if method.load is not None:
                model = method.load(base.model, folder)
            elif method.config is not None:
                config, _ = adapter_config(spec.adapter, kind, max_steps=UNKNOWN_BUDGET, where=adapter_place(spec))
                assert method.wrap is not None, "a method with a config of its own wraps"
                model = method.wrap(base.model, config, None)
                if not spec.model.autocast_adapter_dtype:
                    own.in_base_precision(model)
                own.restore(model, folder)
            else:
                model = _loaded(base.model, spec, folder)
                config = model.peft_config["default"]
    except LOADING_ERRORS as error:
        if ran_out_of_memory(error):
            raise
        raise UserError(f"cannot load the saved adapter in {folder}: {error}", fix="run again with --rerun") from error
    return built_on(base, model, config, method, frozenset(), base.facts)


def _loaded(model: Any, spec: RunSpec, folder: Path) -> Any:
    """peft's loading, in the hands of the adapter's start where it changes the base."""
    import peft

    def make(config: Any) -> Any:
        return peft.PeftModel.from_pretrained(
            model, str(folder), config=config, autocast_adapter_dtype=spec.model.autocast_adapter_dtype
        )

    asked = beginning.asked(spec)
    if asked is None or not asked.start.changes_base:
        return make(None)
    if not (folder / START_FILE).is_file():
        raise UserError(
            f"{folder / START_FILE} is missing: the adapter belongs on a base that is made with it",
            fix="restore the file, or run again with --rerun",
        )
    config = peft.PeftConfig.from_pretrained(str(folder))
    return asked.start.load(model, config, load_file(str(folder / START_FILE)), make)


def share(spec: RunSpec, folder: Path, target: Path) -> bool:
    """Write a saved adapter that belongs on a changed base as one for the base as it was; says whether there is one."""
    asked = beginning.asked(spec)
    if asked is None or asked.start.share is None or not (folder / START_FILE).is_file():
        return False
    try:
        asked.start.share(folder, target)
    except SafetensorError as error:
        raise write_error(error, target) from error
    return True


def _require_safetensors(folder: Path) -> None:
    """No pickle is read, and peft would take one where the safetensors file is missing.

    Raises:
        UserError: The folder holds no safetensors.
    """
    if not any(folder.rglob("*.safetensors")):
        others = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file())) or "nothing"
        raise UserError(
            f"no safetensors in {folder}, which holds {others}", fix="restore them, or run again with --rerun"
        )


def saved_bytes(folder: Path) -> int:
    """Bytes of what was trained, in a saved folder: what a base is made from again is not counted."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors") if path.name != START_FILE)


def discard(folder: Path) -> None:
    """Remove a saved folder if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
