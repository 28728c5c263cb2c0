"""The token rows that a run learns from, whatever the kind of its task. Cuts nothing itself, and knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from peftlab.config.task import Task
from peftlab.protocols import Example
from peftlab.rows import conversations, tokenise, windows
from peftlab.rows.tokenise import PAIR_SEPARATOR, TokenRow


def in_turns(task: Task, chat_template: bool | None) -> bool:
    """Whether rows are written turn by turn: conversations, and prompts with their targets in the chat template."""
    return bool(task.messages) or (task.kind == "generate" and bool(chat_template))


def make(
    examples: Sequence[Example],
    tokenizer: Any,
    task: Task,
    *,
    max_length: int,
    loss_mask: Literal["answer", "everything"],
    chat_template: bool | None = None,
    pair_separator: str = PAIR_SEPARATOR,
) -> tuple[list[TokenRow], dict[str, Any]]:
    """One row an example, or all windows of plain text; with counts of tokens, and of what was cut.

    Args:
        examples: Of the task.
        tokenizer: The model's.
        task: Whose rows they are.
        max_length: Tokens of a row at most.
        loss_mask: What of a row is learnt.
        chat_template: How conversations are written (`data.chat_template`); of a prompt and its target whether they
            are one, as generation then asks it.
        pair_separator: What stands between two texts that the tokenizer does not tell apart.

    Raises:
        UserError: There is nothing to learn from.
    """
    if in_turns(task, chat_template):
        writing = conversations.writing_of(tokenizer, task, chat_template)
        examples = examples if task.messages else [_as_turns(example) for example in examples]
        return conversations.token_rows(examples, tokenizer, writing, max_length=max_length, loss_mask=loss_mask)
    if task.kind == "text":
        return windows.token_rows(examples, tokenizer, max_length=max_length, join=task.join)
    return tokenise.tokenise(
        examples,
        tokenizer,
        kind="classify" if task.has_head else "causal",
        max_length=max_length,
        loss_mask=loss_mask,
        pair_separator=pair_separator,
    )


def _as_turns(example: Example) -> Example:
    """The prompt as the user's turn, the target as the assistant's."""
    turns = (("user", example.prompt), ("assistant", example.target))
    return replace(example, messages=tuple({"role": role, "content": said} for role, said in turns))
