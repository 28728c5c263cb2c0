"""LoRA needs nothing beyond peft; its variant that acts after invocation tokens needs them in every row.

aLoRA (Greenewald et al. 2025, https://arxiv.org/abs/2504.12397) leaves a row without its tokens to the base, in
silence.
"""

from __future__ import annotations

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


PLUGIN = Method(check_rows=check_rows)
