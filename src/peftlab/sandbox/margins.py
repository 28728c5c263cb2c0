"""How far reference solutions stay below the limit on CPU time on this machine; not where they come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from peftlab.sandbox.limits import Limits
from peftlab.sandbox.programs import Outcome

NARROW = 3.0
"""Below this, a slower or fuller machine could turn a right program into a late one: caches and hyperthreads that are
shared cost a factor of up to about two."""


@dataclass(frozen=True, kw_only=True)
class Margin:
    """The limit beside what right programs need.

    Attributes:
        programs: How many were run.
        failed: How many did not pass.
        slowest: Position of the one that used most.
        cpu_seconds: What that one used.
        times: How often it would fit into the limit.
    """

    programs: int
    failed: int
    slowest: int
    cpu_seconds: float
    times: float

    @property
    def narrow(self) -> bool:
        """Whether the limit may decide what it should not."""
        return self.failed > 0 or self.times < NARROW


def measured(outcomes: Iterable[tuple[int, Outcome]], limits: Limits) -> Margin:
    """The margin of programs that are known to be right.

    Args:
        outcomes: What `running.run` gave for them.
        limits: The limits that they ran under.
    """
    seen = list(outcomes)
    used = max(((one.cpu_seconds or 0.0, -position) for position, one in seen), default=(0.0, 0))
    return Margin(
        programs=len(seen),
        failed=sum(one.kind != "passed" for _, one in seen),
        slowest=-used[1],
        cpu_seconds=used[0],
        times=limits.cpu_seconds / max(used[0], 1e-3),
    )
