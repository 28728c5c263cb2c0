"""What a start computed of its rows, kept as safetensors in the cache folder, so that it is computed once.

Several processes of a launch, several ranks of an adapter and several runs share it. Decides nothing: a file that is
absent, or damaged, is made again, and is equal to what it was. What it depends on is in its name, the machine
included.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peftlab import measure
from peftlab.config.spec import RunSpec
from peftlab.digest import digest
from peftlab.errors import UserError
from peftlab.modelling import randomness
from peftlab.modelling.conversion import CACHE_VARIABLE, cache_folder
from peftlab.modelling.models import Base

Tensors = dict[str, torch.Tensor]


def keeper(spec: RunSpec, base: Base, rows: str) -> Callable[..., Tensors]:
    """The function `kept` of a `protocols.Calibration`, for rows with this digest."""
    device = next(base.model.parameters()).device
    known = {
        "model": spec.base_identity(),
        "revision": base.facts.get("revision"),
        "kind": base.kind,
        "rows": rows,
        "versions": measure.versions(measure.RESUME_PACKAGES),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    folder = cache_folder() / "starts" / digest(known)

    def kept(name: str, make: Callable[[], Tensors], *, depends_on: Mapping[str, Any], large: bool = False) -> Tensors:
        def fresh() -> Tensors:
            # in a stream of its own: what is drawn afterwards must not depend on whether there was a file
            with randomness.seeded(spec.seed, "adapter", "calibration", name):
                return make()

        wanted = spec.calibration.cache
        if wanted == "none" or (large and wanted == "small"):
            return fresh()
        path = folder / f"{name}-{digest(dict(depends_on))}.safetensors"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                found = _read(path)
                if found is None:
                    found = fresh()
                    _write(path, found)
        except OSError as error:
            raise UserError(
                f"cannot write the cache folder {folder}: {error}",
                fix=f"set {CACHE_VARIABLE} to a folder with room, or calibration.cache=none",
            ) from error
        return {key: tensor.to(device) for key, tensor in found.items()}

    return kept


def _read(path: Path) -> Tensors | None:
    try:
        return load_file(str(path)) if path.is_file() else None
    except SafetensorError:
        return None


def _write(path: Path, tensors: Tensors) -> None:
    beside = path.with_suffix(".writing")
    try:
        save_file({key: tensor.to("cpu").clone().contiguous() for key, tensor in tensors.items()}, str(beside))
        os.replace(beside, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        beside.unlink(missing_ok=True)
