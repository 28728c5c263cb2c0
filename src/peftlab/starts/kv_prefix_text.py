"""A trained key-value prefix that begins as the keys and values of a text (`model.kv_prefix_text`).

peft computes it (`initialize_kv_prefix_from_text`): the text goes through the tokenizer's chat template, as a system's
words, where there is one, and the first `num_virtual_tokens` of its tokens are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peftlab.errors import UserError, nearest
from peftlab.protocols import Calibration, Start

_TYPES = ("CARTRIDGE", "PREFIX_TUNING")
_KEY = "model.kv_prefix_text"


def check(adapter: Mapping[str, Any], kind: str, calibration: Any) -> None:
    """Refuse what peft cannot begin from a text.

    Raises:
        UserError: Another method, a projected prefix, or classification.
    """
    named = str(adapter.get("peft_type", "full fine-tuning")).upper()
    if named not in _TYPES:
        guess = nearest(named, _TYPES)
        raise UserError(
            f"{_KEY}: {named} has no key-value prefix that could begin as a text",
            fix=f"set {_KEY}=null, or use {guess or ' or '.join(_TYPES)}",
        )
    if adapter.get("prefix_projection"):
        raise UserError(
            f"{_KEY}: with prefix_projection the prefix comes out of a network, which no text can be put into",
            fix=f"set prefix_projection=false, or {_KEY}=null",
        )
    if kind != "causal":
        raise UserError(f"{_KEY}: peft begins a prefix from a text for causal models only", fix=f"set {_KEY}=null")


def wrap(
    model: Any, config: Any, calibration: Calibration, make: Callable[[Any], Any]
) -> tuple[Any, Mapping[str, Any]]:
    """Wrap, then put the text's keys and values in.

    Raises:
        UserError: The text is shorter than the prefix.
    """
    from peft import initialize_kv_prefix_from_text

    wrapped = make(config)
    training = wrapped.training
    wrapped.eval()
    try:
        initialize_kv_prefix_from_text(wrapped, calibration.tokenizer, text=calibration.text)
    except ValueError as error:
        if "cached tokens" not in str(error):
            raise
        raise UserError(
            f"{_KEY}: {error} (num_virtual_tokens = {config.num_virtual_tokens})",
            fix="give a longer text, or lower num_virtual_tokens",
        ) from error
    wrapped.train(training)
    return wrapped, {}


PLUGIN = Start(check=check, wrap=wrap)
