"""The table of attacks in `docs/sandbox.md`: what holds each, and how it ended with all layers and with fewer.

`PYTHONPATH=tests python -m attacks.table` measures as the user who starts it, and prints the table.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from attacks import arena, machine, others, resources, verdicts
from attacks.attack import Attack

LAYERS: dict[str, tuple[str, ...]] = {
    "all layers": (),
    "without seccomp": ("seccomp",),
    "nor Landlock": ("seccomp", "landlock"),
}
GROUPS: dict[str, list[Attack]] = {
    "More than its share": resources.ATTACKS,
    "The machine": machine.ATTACKS,
    "Other processes and the network": others.ATTACKS,
    "The verdict": verdicts.ATTACKS,
}


def words(attack: Attack) -> str:
    return attack.name.replace("_", " ")


def table(outcomes: Mapping[str, Mapping[str, str]]) -> str:
    lines = []
    for title, attacks in GROUPS.items():
        lines += [f"### {title}", "", f"| attack | held by | {' | '.join(LAYERS)} |", "|---" * (2 + len(LAYERS)) + "|"]
        for one in attacks:
            ended = [outcomes[name][one.name] for name in LAYERS]
            lines.append(f"| {words(one)} | {one.held_by} | {' | '.join(ended)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    found = {}
    for name, without in LAYERS.items():
        with tempfile.TemporaryDirectory() as folder, arena.arena(Path(folder)) as place:
            answer = arena.run(os.geteuid(), "kernel", arena.programs(place, arena.ATTACKS), without=without)
        kinds = {one.name: answer["outcomes"][str(at)][0] for at, one in enumerate(arena.ATTACKS)}
        found[name] = {one: "got it" if kind == "passed" else kind for one, kind in kinds.items()}
    print(table(found))


if __name__ == "__main__":
    main()
