"""What the processes of a launch do that do not lead: the leader's work along with it, and nothing of their own.

They read the same rows and the same files, take their share of every step and of every evaluation, and write nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peftlab.config.spec import RunSpec
from peftlab.events import Event, Finished
from peftlab.loop import checkpoint, preparation, training
from peftlab.modelling import models, weights
from peftlab.parallel import processes
from peftlab.records.payload import read_record
from peftlab.rows import data
from peftlab.scores import evaluation, samples, scoring


def follow(spec: RunSpec) -> Iterator[Event]:
    """Do what the leader says until it says that the run is over; yields nothing but the end."""
    follower = _Follower(spec)
    while True:
        message = processes.listen()
        if message["do"] == "end":
            record = read_record(Path(message["path"]))
            yield Finished(record=record, path=message["path"], reused=message["reused"])
            return
        if message["do"] == "train":
            follower.train(message)
        else:
            follower.score(message)


class _Follower:
    """What this process has loaded so far."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.rows: data.Rows | None = None
        self.loaded: tuple[str, models.Built] | None = None

    def train(self, message: Mapping[str, Any]) -> None:
        """Every step of the training, and every validation along the way."""
        rows = self._rows()
        self.loaded = None
        ready = preparation.prepare(self.spec, rows, scoring.load_base(self.spec))
        built, state, folder = ready.built, ready.state, Path(message["checkpoints"])
        with state.split.whole():
            pass  # the leader looks at the model as built
        checkpoint.restore(folder, built, ready.stream, state, any_environment=message["any_environment"])
        processes.agree(state.step, "the step to go on from")
        with state.split.whole():
            pass  # the leader tries the longest evaluation batch
        for step in training.steps(built, ready.stream, self.spec, state):
            if ready.due.validation(step):
                with state.split.whole():
                    stops = self._validates(built)
                if stops:
                    break
            if ready.due.checkpoint(step) and step.step < state.total_steps:
                checkpoint.join_in(folder, state)
        with state.split.whole():
            processes.agree(training.checksum(built), "the trained weights")

    def _validates(self, built: models.Built) -> bool:
        """Take part in a validation; whether the training stops with it."""
        while True:
            message = processes.listen()
            if message["do"] == "go on":
                return bool(message["stop"])
            self.loaded = (scoring.LIVE, built)
            self.score(message)
            self.loaded = None

    def score(self, message: Mapping[str, Any]) -> None:
        """This process's share of an evaluation; what it comes to is the leader's business."""
        sampled = message["sampled"]
        spec = samples.spec_of(self.spec, samples.find(*sampled)) if sampled else self.spec
        rows = data.load(spec) if sampled else self._rows()
        if self.loaded is None or self.loaded[0] != message["whose"]:
            self.loaded = None
            self.loaded = (message["whose"], self._weights(message["whose"]))
        for _ in evaluation.score(self.loaded[1], getattr(rows, message["part"]), spec, shots=rows.shots):
            pass

    def _weights(self, named: str) -> models.Built:
        if named == scoring.START:
            return models.bare(scoring.load_base(self.spec))
        return weights.load_trained(self.spec, Path(named))

    def _rows(self) -> data.Rows:
        if self.rows is None:
            self.rows = data.load(self.spec)
        return self.rows
