"""Runs experiments in child processes that share one import of torch, and kills them at a chosen moment.

Reads one JSON command a line from stdin, forks a child that obeys it, and answers with the child's exit status. Run as
a program by `Runner`; it does nothing when imported.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOMENTS = ("step", "checkpoint", "validation", "record", "setup")


class Runner:
    """A fork server. `run` returns the child's exit code, negative for a signal."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )

    def run(self, experiment: Path, results: Path, *, kill: str | None = None, count: int = 1, **more: Any) -> int:
        """Run an experiment; `kill` names the moment, `count` which occurrence of it."""
        return self.launch(1, experiment, results, kill=kill, count=count, **more)[0]

    def launch(
        self, processes: int, experiment: Path, results: Path, *, kill: str | None = None, count: int = 1, **more: Any
    ) -> list[int]:
        """Run an experiment in several processes, as a launcher would; of them, number `victim` is killed."""
        more = {"victim": 0, "processes": processes, **more}
        command = {"experiment": str(experiment), "results": str(results), "kill": kill, "count": count, **more}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return [int(code) for code in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _nth(count: int, action: Callable[[], None], original: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            action()
        return original(*args, **kwargs)

    return wrapped


def _arm(kill: str, count: int) -> None:
    """Make the process kill itself at the `count`-th time of a moment."""
    from peftlab.loop import checkpoint, training
    from peftlab.modelling import adapting
    from peftlab.records import slot
    from peftlab.scores import grading

    changed: Any = checkpoint
    ending: Any = slot

    if kill == "step":
        training._update = _nth(count, _die, training._update)
    elif kill == "setup":
        adapting.adapt = _nth(count, _die, adapting.adapt)
    elif kill == "validation":
        grading.graded = _nth(count, _die, grading.graded)
    elif kill == "record":
        ending.settle = _nth(count, _die, ending.settle)
    elif kill == "checkpoint":
        whole = changed.save_file

        def half(tensors: Any, path: str) -> None:
            whole(tensors, path)
            os.truncate(path, os.path.getsize(path) // 2)
            _die()

        calls = 0

        def save_file(tensors: Any, path: str) -> None:
            nonlocal calls
            calls += 1
            (half if calls == count else whole)(tensors, path)

        changed.save_file = save_file
    elif kill == "random":
        import threading

        threading.Timer(count / 1000, _die).start()
    else:
        raise ValueError(kill)


def _obey(command: dict[str, Any], rank: int, port: int) -> int:
    from peftlab.config import loading
    from peftlab.errors import UserError
    from peftlab.job import runs
    from peftlab.records.store import RunStore

    if command["processes"] > 1:
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": command["processes"], "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in here.items()}})
    if command["kill"] and command["victim"] == rank:
        _arm(command["kill"], command["count"])
    try:
        resolved = loading.load(command["experiment"], overrides=command.get("overrides"), task=command.get("task"))
        runs.run(resolved, RunStore(command["results"]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _warm_up() -> None:
    """Import what every child needs. No backward pass here: autograd does not survive a fork."""
    import tempfile

    import toy
    from peftlab.config import loading
    from peftlab.job import runs  # noqa: F401
    from peftlab.modelling import adapting, models, weights
    from peftlab.scores import evaluation

    with tempfile.TemporaryDirectory() as root:
        resolved = loading.load(toy.write_experiment(Path(root)))
        built = adapting.adapt(models.load(resolved.model, "causal"), resolved)
        weights.save(built, Path(root) / "saved")
        evaluation.rehearse(built, [], resolved, [])


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not come between the answers
    import torch

    torch.set_num_threads(1)
    _warm_up()
    for line in sys.stdin:
        command = json.loads(line)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = [_child(command, rank, port) for rank in range(command["processes"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), file=answers, flush=True)


def _child(command: dict[str, Any], rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        import torch

        # torch renews its thread pool in the first call after a fork; several loading threads at once fail in it
        torch.set_num_threads(1)
        code = _obey(command, rank, port)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
