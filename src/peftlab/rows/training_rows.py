"""The token rows that a run learns from, whatever the kind of its task. Cuts nothing itself, and knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from peftlab.config.task import Task
from peftlab.protocols import Example
from peftlab.rows import tokenise, windows
from peftlab.rows.tokenise import TokenRow


def make(
    examples: Sequence[Example],
    tokenizer: Any,
    task: Task,
    *,
    max_length: int,
    loss_mask: Literal["answer", "everything"],
) -> tuple[list[TokenRow], dict[str, Any]]:
    """One row an example, or all windows of plain text; with counts of tokens, and of what was cut.

    Raises:
        UserError: There is nothing to learn from.
    """
    if task.kind == "text":
        return windows.token_rows(examples, tokenizer, max_length=max_length, join=task.join)
    kind = "classify" if task.has_head else "causal"
    return tokenise.tokenise(examples, tokenizer, kind=kind, max_length=max_length, loss_mask=loss_mask)
