"""A GGUF file inside a package becomes a folder of safetensors, once, in a cache folder. Loads nothing else."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from peftlab.digest import file_digest
from peftlab.errors import UserError

CACHE_VARIABLE = "PEFTLAB_CACHE"


def cache_folder() -> Path:
    """Where converted models lie: PEFTLAB_CACHE, else `peftlab` in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "peftlab"


def converted_gguf(path: Path) -> Path:
    """The folder of the converted model; converts on first use. Safe with several processes at once.

    Weights are kept in float32: dequantised values need more bits than bfloat16 has.

    Raises:
        UserError: The reader is not installed, the cache cannot be written, or the file is no model.
    """
    folder = cache_folder() / "models" / f"{path.stem}-{file_digest(path)[:16]}"
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if not (folder / "config.json").is_file():
                _convert(path, folder)
    except OSError as error:
        raise UserError(
            f"cannot write the cache folder {folder.parent}: {error}", fix=f"set {CACHE_VARIABLE} to a writable folder"
        ) from error
    return folder


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError("reading GGUF files needs the extra 'gguf'", fix="pip install 'peftlab[gguf]'") from error
    parent, name = str(path.parent), path.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=name)
        dequantised = AutoModelForCausalLM.from_pretrained(parent, gguf_file=name, dtype=torch.float32)
    except (ValueError, LookupError, TypeError, RuntimeError, EOFError, struct.error) as error:
        raise UserError(f"{path} cannot be read as a GGUF model: {error}", fix="choose another file") from error
    fresh = _fresh(dequantised)
    temporary = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        fresh.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fresh(dequantised: Any) -> Any:
    """A model that can be saved: transformers refuses one whose config still says GGUF."""
    from transformers import AutoModelForCausalLM

    config = dequantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(dequantised.state_dict())
    fresh.generation_config = dequantised.generation_config
    return fresh
