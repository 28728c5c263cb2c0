"""bitsandbytes: int8 (LLM.int8()), nf4 and fp4 (QLoRA), made from full-precision weights while they are loaded.

Runs on a CPU and on GPUs. Checkpoints that bitsandbytes saved are loaded as they are. Needs the extra `bnb`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.config.settings import Settings
from peftlab.protocols import Quantizer
from peftlab.quant._needed import needed

_FOUR_BIT = ("double_quant", "compute_dtype")
_CHOSEN = "float32"
"""What the library computes in where nothing else is said."""


def declares(stored: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The settings that declare a checkpoint which bitsandbytes has quantised; None: another library has."""
    if not (stored.get("load_in_8bit") or stored.get("load_in_4bit")):
        return None
    if stored.get("load_in_8bit"):
        return {"method": "bnb-int8", "double_quant": False, "compute_dtype": None}
    compute = str(stored.get("bnb_4bit_compute_dtype") or _CHOSEN).removeprefix("torch.")
    return {
        "method": f"bnb-{stored.get('bnb_4bit_quant_type', 'fp4')}",
        "double_quant": bool(stored.get("bnb_4bit_use_double_quant")),
        "compute_dtype": None if compute == _CHOSEN else compute,
    }


def quantises(module: Any) -> bool:
    """Whether a layer of a model becomes one of few bits: linear layers, also those that are written transposed."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return type(module) is nn.Linear or isinstance(module, Conv1D)


def load_options(scheme: str, quant: Settings, kept: Sequence[str], device: str) -> Mapping[str, Any]:
    """What `from_pretrained` is told; modules in `kept` stay as they are."""
    from transformers import BitsAndBytesConfig

    left = list(kept) or None
    if scheme == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=left)}
    plain = quant.model_dump()
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=left,
            bnb_4bit_quant_type=scheme,
            bnb_4bit_use_double_quant=plain["double_quant"],
            bnb_4bit_compute_dtype=plain["compute_dtype"] or _CHOSEN,
        )
    }


def prepare(model: Any) -> int:
    """Make the layers compute the same in training and in evaluation; returns how many there are.

    On processors with AVX-512-BF16 an evaluation repacks 4-bit weights for a faster kernel that has no backward: from
    then on every gradient that passes such a layer is exactly 0, without an error (bitsandbytes 0.50).

    On a CPU an 8-bit layer in training multiplies by its weights as they are, in evaluation it rounds its inputs to
    8 bits too, all rows of a batch together: another model than the one that was trained, whose answer to a row depends
    on its neighbours. It stays in the arithmetic that it is trained in.
    """
    from bitsandbytes import nn as layers

    found = 0
    for module in model.modules():
        if isinstance(module, layers.Linear4bit):
            module.support_avx512bf16_for_cpu = False
            found += 1
        elif isinstance(module, layers.Linear8bitLt):
            if module.weight.device.type == "cpu":
                module.train(True)
                module.train = _stays
            found += 1
    return found


def _stays(mode: bool = True) -> None:
    """In the place of a layer's `train`, which would switch its arithmetic."""


PLUGIN = Quantizer(
    schemes={"int8": (), "nf4": _FOUR_BIT, "fp4": _FOUR_BIT},
    packages=("bitsandbytes",),
    check=needed("bnb", "bitsandbytes"),
    declares=declares,
    chosen={"compute_dtype": _CHOSEN},
    quantises=quantises,
    load_options=load_options,
    prepare=prepare,
)
