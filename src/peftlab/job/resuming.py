"""A checkpoint that the user names to go on from: is it this run's, and which one will be used?

Nothing is loaded here. A run goes on from its newest checkpoint by itself; a path is only ever a check of that.
"""

from __future__ import annotations

from pathlib import Path

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.loop import checkpoint
from peftlab.records.payload import PROGRESS, read_progress
from peftlab.records.store import RunStore

OPTION = "--resume_from_checkpoint"


def check(named: str, spec: RunSpec, store: RunStore) -> str:
    """Say from where the run goes on.

    Raises:
        UserError: There is no checkpoint at the path, or it is another run's or lies among other results.
    """
    path = Path(named).expanduser()
    if not path.is_dir():
        raise UserError(
            f"{OPTION} {path}: there is no such folder",
            fix="leave the option out: an unfinished run goes on by itself, and a finished one keeps no checkpoints",
        )
    path = path.resolve()
    payload = path.parent.parent
    if not (path / checkpoint.STATE_FILE).is_file() or not (payload / PROGRESS).is_file():
        raise UserError(
            f"{OPTION} {named}: this is no checkpoint of a run",
            fix=f"name a folder <results>/<run>/checkpoints/{checkpoint.name(50)}, or leave the option out",
        )
    owner = read_progress(payload).run
    if owner.key != spec.train_key:
        raise UserError(
            f"{OPTION} {named}: this checkpoint is of the run {owner.stem}; the run asked for is {spec.stem}",
            fix="ask for that run with its own settings, or leave the option out",
        )
    if payload.parent not in [place.resolve() for place in store.places.all()]:
        raise UserError(
            f"{OPTION} {named}: this run lies among other results than {store.places.main}",
            fix="name its results folder with --results",
        )
    newest = next(iter(checkpoint.existing(path.parent)), None)
    if newest is None:
        raise UserError(
            f"{OPTION} {named}: no whole checkpoint is there", fix="leave the option out: the run starts anew"
        )
    if newest.name != path.name:
        return f"going on from {newest.name}, the newest checkpoint of this run, not from {path.name}"
    return f"going on from {path.name}"
