"""QALoRA: plain LoRA on every base but a GPTQ one, which is said before training.

Xu et al. 2023 (https://arxiv.org/abs/2309.14717). peft groups the inputs of layers of GPTQ checkpoints only, and takes
`use_qalora` without a word elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.methods.lora import check_rows, verify
from peftlab.protocols import Method

_ITS_BASE = "gptq"


def note(adapter: Mapping[str, Any], quant: str | None) -> str | None:
    """What is trained instead, where the base is none that it works on."""
    if quant == _ITS_BASE:
        return None
    return "use_qalora changes nothing here: peft has QALoRA for bases of quant.method=gptq only; this is plain LoRA"


PLUGIN = Method(check_rows=check_rows, verify=verify, note=note)
