"""LoRA needs nothing beyond peft; its variant that acts after invocation tokens needs them in every row.

aLoRA (Greenewald et al. 2025, https://arxiv.org/abs/2504.12397) leaves a row without its tokens to the base, in
silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.errors import UserError
from peftlab.protocols import Method


def check_rows(adapter: Mapping[str, Any], rows: Sequence[Sequence[int]]) -> None:
    """See that each training row holds the invocation tokens, where there are any.

    Raises:
        UserError: Rows do not.
    """
    wanted = adapter.get("alora_invocation_tokens")
    if not wanted:
        return
    absent = sum(not _holds(row, list(wanted)) for row in rows)
    if absent:
        raise UserError(
            f"alora_invocation_tokens = {wanted}: {absent} of {len(rows)} training rows do not hold them, and such "
            "rows train nothing",
            fix="put the tokens' text into the prompt (data.prompt, or the task), or name tokens that the rows hold",
        )


def _holds(row: Sequence[int], wanted: list[int]) -> bool:
    return any(list(row[start : start + len(wanted)]) == wanted for start in range(len(row) - len(wanted) + 1))


def verify(model: Any, config: Any) -> None:
    """See that the variant which the config asks for is on the layers.

    peft's layers for bases of few bits know some variants only, and are plain LoRA without a word for the others.

    Raises:
        UserError: It is not.
    """
    from peft.tuners.lora import LoraLayer

    fields = dataclasses.fields(config)
    asked = [one.name for one in fields if one.metadata.get("is_lora_variant") and getattr(config, one.name)]
    starts = [name for one in fields for name in one.metadata.get("lora_variants", ())]
    start = str(config.init_lora_weights)
    if start.lower() in starts:
        if start != start.lower():  # peft makes the start of it, and leaves out what belongs to its training
            raise UserError(f"init_lora_weights = {start!r}", fix=f"write it as {start.lower()!r}")
        asked.append(f"init_lora_weights = {start!r}")
    plain = [
        (name, type(layer.get_base_layer()).__name__)
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and layer.r and not layer.lora_variant
    ]
    if asked and plain:
        name, kind = plain[0]
        raise UserError(
            f"{' and '.join(asked)}: peft does not know this on a layer like {name} ({kind}), and would train plain "
            "LoRA under its name",
            fix=f"leave {asked[0].partition(' ')[0]} out, or train on a base of full precision: quant.method=null",
        )


PLUGIN = Method(check_rows=check_rows, verify=verify)
