"""Weights & Biases, online or (`WANDB_MODE=offline`) to files that `wandb sync` uploads later. Needs the extra `wandb`.

It gets what peftlab tells it and nothing else: no code, no git state, no machine or package list, no captured console.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.errors import UserError
from peftlab.protocols import Tracked, Tracker, TrackerSession

_INIT_SECONDS, _FINISH_SECONDS = 30, 60
"""How long a server that does not answer may hold a run up, at its start and at its end."""
_MAX_TAG_CHARACTERS = 64
_EXIT_CODES = {"finished": 0, "cancelled": 255}
"""What wandb calls finished and killed; anything else has failed."""


def _check() -> None:
    try:
        importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        raise UserError("track.report_to: 'wandb' is not installed", fix="pip install 'peftlab[wandb]'") from None
    wandb = _imported()
    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        # asked now: `init` would wait for somebody to type a key
        raise UserError(
            "track.report_to: wandb has no API key here",
            fix="wandb login, or set WANDB_MODE=offline to keep files for a later `wandb sync`",
        )


def _imported() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own crash reports; nobody asked for that connection
    import wandb

    return wandb


def _open(run: Tracked) -> TrackerSession:
    wandb = _imported()
    online = wandb.setup().settings.mode == "online"
    run.folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_code=True,
        disable_git=True,
        symlink=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=_INIT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
    )
    board = wandb.init(
        project=run.project,
        name=run.name,
        id=run.id,
        resume="allow" if online else None,  # offline files of one id become one run when they are synchronised
        dir=str(run.folder),
        config=dict(run.config),
        tags=[tag[-_MAX_TAG_CHARACTERS:] for tag in run.tags.values()],
        reinit="create_new",
        settings=settings,
    )
    # Our own axis: wandb's only grows, and the steps after a checkpoint are taken again when a run is resumed.
    board.define_metric("*", step_metric="step")

    def numbers(step: int, figures: Mapping[str, float]) -> None:
        board.log({"step": step, **figures})

    def texts(step: int, name: str, found: Sequence[str]) -> None:
        if len(found) == 1:
            board.summary[name] = found[0]
        else:
            board.log({"step": step, name: wandb.Table(columns=["text"], data=[[text] for text in found])})

    def close(status: str, error: str | None) -> None:
        board.summary["status"] = status
        if error is not None:
            board.summary["error"] = error
        board.finish(exit_code=_EXIT_CODES.get(status, 1))
        for path in run.folder.rglob("*"):
            if path.is_symlink():  # to a log outside the run's folder
                path.unlink()

    return TrackerSession(numbers=numbers, texts=texts, close=close)


PLUGIN = Tracker(open=_open, check=_check)
