"""AdaMSS prunes subspaces between two steps (`use_asa`); the last of them is filled in from the budget.

peft's default is step 1000, whatever the budget; its own advice is a third to a half of the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.errors import UserError
from peftlab.protocols import Method


def schedule(adapter: Mapping[str, Any], steps: int) -> Mapping[str, Any]:
    """`final_warmup` at half of the budget, where pruning is asked for and no step is given.

    Raises:
        UserError: Pruning would begin after it ends, or end after the training.
    """
    if not adapter.get("use_asa"):
        return {}
    first, last = adapter.get("init_warmup", 50), adapter.get("final_warmup")
    last = steps // 2 if last is None else last
    if type(first) is not int or type(last) is not int:
        raise UserError(
            f"AdaMSS prunes from step {first!r} (init_warmup) to step {last!r} (final_warmup)", fix="give whole numbers"
        )
    if not first < last <= steps:
        raise UserError(
            f"AdaMSS prunes from step {first} (init_warmup) to step {last} (final_warmup), and there are {steps} steps",
            fix=f"give init_warmup < final_warmup <= {steps}, or more steps",
        )
    return {"final_warmup": last}


PLUGIN = Method(schedule=schedule)
