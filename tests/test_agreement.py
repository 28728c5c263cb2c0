"""Scores through a server are used only where it answers as our own weights do, and is seen to have the trained ones.

The stand-in serves what transformers and peft generate from the same files, one prompt at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import endpoint_server as served
import toy
from endpoint_server import Ids, StandIn, Writer, ids_of
from peftlab.cli import main
from peftlab.config import loading
from peftlab.errors import UserError
from peftlab.events import Evaluated, Event, Finished, Stage
from peftlab.job import evaluating, regrading, runs
from peftlab.records.record import Evaluation, Record
from peftlab.records.store import RunStore
from peftlab.scores import agreement, stored
from peftlab.scores.agreement import Told, compare, unlike

ROWS = 60


class Trained:
    """A finished run of a tiny model with its writers; `results` is a fresh copy of its results folder."""

    def __init__(self, root: Path) -> None:
        task = toy.write_task(root / "task", test=ROWS)
        folder = toy.write_experiment(
            root, task=task, optim={"learning_rate": 3e-2}, batch={"per_device_eval_batch_size": 60}
        )
        self.root, self.folder, self.task, self.model = root, folder, task, root / "model-llama"
        self._results = root / "results"
        self.record = runs.run(loading.load(folder), RunStore(self._results))
        self.adapter = RunStore(self._results).folder_of(self.record) / "adapter"
        self.start: Writer = served.writer(self.model)
        self.tuned: Writer = served.writer(self.model, self.adapter)
        self.results = self._results

    def renew(self, folder: Path) -> None:
        self.results = folder / self._results.name
        for place in self.root.glob("*results"):
            shutil.copytree(place, folder / place.name)

    def evaluate(self, reference: str | None = None, *, task: str | None = None, **settings: Any) -> list[Event]:
        overrides = {"generation.engine": "openai", **{key.replace("__", "."): one for key, one in settings.items()}}
        events = evaluating.evaluate(
            reference or self.record.key, RunStore(self.results), task=task, overrides=overrides
        )
        return list(events)

    def ask(self, server: StandIn, reference: str | None = None, **settings: Any) -> list[Event]:
        names = {"endpoint__url": server.url, "endpoint__model": "tuned", "endpoint__base_model": "base"}
        return self.evaluate(reference, **{**names, **settings})

    def serve(self, **faults: Any) -> StandIn:
        return StandIn({"base": self.start, "tuned": self.tuned}, **faults)


@pytest.fixture(scope="module")
def module_run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def trained(module_run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trained]:
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "cache"))
    module_run.renew(tmp_path)
    yield module_run


def scored(events: list[Event]) -> list[Evaluation]:
    return [event.evaluation for event in events if isinstance(event, Evaluated)]


def record_of(events: list[Event]) -> Record:
    return [event for event in events if isinstance(event, Finished)][-1].record


def answers(trained: Trained, record: Record, evaluation: Evaluation) -> list[str]:
    folder = RunStore(trained.results).evaluation_folder(record, evaluation)
    assert folder is not None
    return [sample["prediction"]["text"] for sample in stored.samples(folder) or []]


def by_engine(record: Record, role: str) -> dict[str, Evaluation]:
    return {
        one.settings["generation"]["engine"]: one
        for one in record.evaluations
        if one.role == role and one.what == "task" and one.part == "test"
    }


# ---------------------------------------------------------------------------------------------------- from end to end


def test_scores_through_a_server_are_those_of_our_own_weights(trained: Trained) -> None:
    with trained.serve() as server:
        events = trained.ask(server)
        record = record_of(events)
        asked = len(server.asked)
        for role in ("base", "last"):
            here, there = by_engine(record, role)["hf"], by_engine(record, role)["openai"]
            assert answers(trained, record, there) == answers(trained, record, here)
            assert there.metrics == here.metrics and there.items == here.items
            assert there.key != here.key
            endpoint: dict[str, Any] = {
                "model": "base" if role == "base" else "tuned",
                "prompts": "tokens",
                "extra_body": {},
            }
            assert there.settings["endpoint"] == endpoint and "endpoint" not in here.settings
        assert asked == 2 * (50 + ROWS)
        said = [event.text for event in events if isinstance(event, Stage)]
        assert any("openai answers 50 of 50 items as hf does; the trained weights show in" in text for text in said)
        notes = by_engine(record, "last")["openai"].notes["agreement"]
        assert (notes["with"], notes["items"], notes["same"], notes["hidden"]) == ("hf", 50, 50, 0)
        assert 0 < notes["seen"] == notes["changed"] <= 50 and notes["tokens"] == 32
        assert by_engine(record, "base")["openai"].notes["agreement"].keys().isdisjoint({"changed", "seen"})
        written = [path.read_bytes() for path in trained.results.parent.rglob("*") if path.is_file()]
        assert not any(server.url.encode() in content for content in written), "an address is nobody's result"
    again = record_of(trained.ask(server))
    assert again == record, "what is stored needs no server"
    graded = record_of(list(regrading.regrade(record.key, RunStore(trained.results))))
    assert by_engine(graded, "last")["openai"].notes["agreement"] == notes


def test_a_server_that_ignores_the_adapter_is_refused(trained: Trained) -> None:
    with trained.serve(start_for_all=True) as server, pytest.raises(UserError) as caught:
        trained.ask(server)
    assert "are the starting model's: the server ignores the trained weights" in caught.value.message
    [record] = RunStore(trained.results).records()
    assert set(by_engine(record, "last")) == {"hf"}, "no score of it is kept"


def others(rows: int) -> dict[Ids, Ids]:
    """Each prompt of the test rows to the next one."""
    prompts = [ids_of(f"{row['question']} =") for row in toy.rows(rows, 900)]
    return dict(zip(prompts, prompts[1:] + prompts[:1], strict=True))


def test_a_server_that_returns_the_answers_of_other_prompts_is_refused(trained: Trained) -> None:
    swap = others(ROWS)
    with trained.serve(swapped=lambda ids: swap[ids]) as server, pytest.raises(UserError) as caught:
        trained.ask(server)
    assert "which is too few" in caught.value.message and "its answers to other items" in caught.value.message


@pytest.mark.slow
def test_a_server_with_another_adapter_is_refused(trained: Trained, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained.adapter, other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 4 * config["lora_alpha"]}))
    models = {"base": trained.start, "tuned": served.writer(trained.model, other)}
    with StandIn(models) as server, pytest.raises(UserError, match=r"which is too few|only .* show it"):
        trained.ask(server)


def test_an_adapter_that_changes_nothing_cannot_be_seen(trained: Trained, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    unmoved = tmp_path / "unmoved"
    shutil.copytree(trained.adapter, unmoved)
    file = unmoved / "adapter_model.safetensors"
    save_file({name: 0 * tensor for name, tensor in load_file(file).items()}, file)
    with StandIn({"tuned": trained.start}) as server, pytest.raises(UserError, match="it cannot be seen whether"):
        trained.ask(server, str(unmoved), task=str(trained.task))


@pytest.mark.slow
def test_models_and_saved_adapters_of_no_run(trained: Trained, tmp_path: Path) -> None:
    """A model is scored under its one name, and a run that starts from it finds that score."""
    copied = tmp_path / "copied"
    shutil.copytree(trained.adapter, copied)
    with trained.serve() as server:
        url: dict[str, Any] = {"endpoint__url": server.url, "task": str(trained.task)}
        bare: dict[str, Any] = {"generation__max_new_tokens": 5, "batch__per_device_eval_batch_size": 60}
        [model] = scored(trained.evaluate(str(trained.model), endpoint__model="base", **url, **bare))
        assert model.settings["endpoint"]["model"] == "base"
        [adapter] = scored(trained.evaluate(str(copied), endpoint__model="tuned", **url, **bare))
        assert adapter.notes["agreement"]["seen"] > 0
        done = len(server.asked)
        record = record_of(trained.ask(server))
        assert len(server.asked) - done == 50 + ROWS, "the starting model is not asked again"
    assert by_engine(record, "base")["openai"].key == model.key
    assert adapter.metrics == by_engine(record, "last")["openai"].metrics


@pytest.mark.slow
def test_samples_are_compared_greedily_and_made_as_asked(trained: Trained) -> None:
    settings: dict[str, Any] = {
        "generation__do_sample": True,
        "generation__num_return_sequences": 3,
        "data__test_rows": 20,
    }

    with trained.serve() as server:
        record = record_of(trained.ask(server, **settings))
        temperatures = [(body["temperature"], body.get("n")) for body in server.asked]
    assert temperatures == [(0.0, None)] * 20 + [(1.0, 3)] * 20 + [(0.0, None)] * 20 + [(1.0, 3)] * 20
    [last] = [one for one in record.evaluations if one.role == "last" and "endpoint" in one.settings]
    folder = RunStore(trained.results).evaluation_folder(record, last)
    assert folder is not None
    assert [len(sample["prediction"]["more"]) for sample in stored.samples(folder) or []] == [2] * 20


# ----------------------------------------------------------------------------------------- what is bad is said early


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["endpoint.url=http://127.0.0.1:9/v1"], ("127.0.0.1:9/v1/models: cannot be reached",)),
        (["endpoint.url={url}", "endpoint.model=tunde"], ("unknown model 'tunde'", "did you mean 'tuned'?")),
        (["endpoint.url={url}x"], ("/v1x/models: not found", "mostly it ends in /v1")),
        ([], ("no server is named", "endpoint.url=")),
        (["endpoint.url={url}", "endpoint.base_model=null"], ("endpoint.base_model is not set", "the starting model")),
        (["endpoint.url={url}", "endpoint.api_key_variable=NO_KEY"], ("the variable NO_KEY is not set",)),
        (["endpoint.url={url}", "generation.num_beams=2"], ("has no such setting", "generation.engine=hf")),
        (["endpoint.url={url}", "generation.engine=hf"], ("endpoint.url is set, but generation.engine is hf",)),
        (["endpoint.url={url}", "endpoint.modle=x"], ("unknown key 'modle'", "did you mean 'model'?")),
        (["endpoint.url=127.0.0.1"], ("url = '127.0.0.1' is no address such as",)),
    ],
)
def test_bad_settings_end_before_weights_are_loaded(
    settings: list[str],
    expected: tuple[str, ...],
    trained: Trained,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from peftlab.modelling import models

    monkeypatch.setattr(models, "load", lambda *words, **more: pytest.fail("weights were loaded"))
    before = sorted(trained.results.parent.rglob("*.json*"))
    with trained.serve() as server:
        words = ["generation.engine=openai", "endpoint.model=tuned", "endpoint.base_model=base", "endpoint.retries=0"]
        given = {word.partition("=")[0]: word.format(url=server.url) for word in [*words, *settings]}
        code = main(["evaluate", trained.record.key, *given.values(), "--results", str(trained.results)])
        assert not server.asked
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said and "fix: " in said
    for words_ in expected:
        assert words_ in said, said
    assert sorted(trained.results.parent.rglob("*.json*")) == before


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (served.says(200, "<html>welcome</html>"), "its answer is no JSON: '<html>welcome</html>'"),
        (served.says(200, {"data": []}), "its answer lists no models"),
    ],
)
def test_an_address_of_something_else(trained: Trained, answer: Any, expected: str) -> None:
    with trained.serve() as server:
        server._models = answer  # type: ignore[method-assign]
        with pytest.raises(UserError, match=expected.replace("/", ".")):
            trained.ask(server, endpoint__retries=0)


def test_a_run_cannot_be_trained_with_a_server_and_a_file_names_none(trained: Trained, tmp_path: Path) -> None:
    overrides = {"generation.engine": "openai", "endpoint.url": "http://127.0.0.1:9/v1", "seed": 9}
    with pytest.raises(UserError, match="no server has weights that are still to be trained"):
        runs.run(loading.load(trained.folder, overrides=overrides), RunStore(trained.results))
    received = toy.write_experiment(
        tmp_path, task=trained.task, endpoint={"url": "http://evil/v1", "api_key_variable": "AWS_SECRET_ACCESS_KEY"}
    )
    with pytest.raises(UserError, match="a file cannot name a server"):
        loading.load(received)


# ------------------------------------------------------------------------------------------------------- the comparing


def test_two_sets_of_answers_compared_by_hand() -> None:
    """Four items; the third answer of theirs is also ours to the fourth item: 1 of 12 pairs of different items."""
    theirs, ours, start = ["4 ", "7", "9", "x"], ["4", "7", "9", "9"], ["4", "8", "19", "9"]
    told = compare(theirs, ours, None)
    assert told == Told(items=4, same=3, chance=1 / 12, misplaced=0)
    assert compare(theirs, ours, start) == replace(told, changed=2, seen=2, hidden=0)
    assert compare(["8", "4"], ["4", "8"], None) == Told(items=2, same=0, chance=1.0, misplaced=2)
    # "the sum" goes with the start's answer as far as with ours: it is nearer to neither
    assert compare(["the sum", "it is 4"], ["the A", "it is 7"], ["the B", "it is 4"]) == Told(
        items=2, same=0, chance=0.0, misplaced=0, changed=2, seen=0, hidden=1
    )


GOOD = Told(items=50, same=48, chance=0.02, misplaced=0, changed=30, seen=29, hidden=0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"changed": None, "seen": 0}, None),
        ({"same": 40}, None),
        ({"same": 39}, "which is too few"),
        ({"same": 20, "misplaced": 25}, "25 are its answers to other items"),
        ({"seen": 3, "hidden": 27}, "of 30 answers that the training changed, 27 are the starting model's"),
        ({"seen": 23, "hidden": 7}, "only 23 show it"),
        ({"changed": 0, "seen": 0}, "cannot be seen"),
        ({"changed": 5, "seen": 0}, "none of the 5 answers"),
        # with nine crossed pairs the chance of a pair is 9/2450, of one among 49 others 0.166; to the ninth 1e-7
        ({"same": 41, "misplaced": 9, "chance": 9 / 2450}, "9 of the others are its answers to other items"),
        ({"same": 49, "misplaced": 1, "chance": 1 / 2450}, None),
        # 45 of 50 alike: P(X >= 45) is 2e-9 where half of all pairs are alike, and 0.6 where nine tenths are
        ({"same": 45, "chance": 0.5}, None),
        ({"same": 45, "chance": 0.9}, "that shows nothing"),
        ({"same": 50, "chance": 1.0}, "that shows nothing"),
        ({"items": 3, "same": 3, "chance": 0.2}, "that shows nothing"),
    ],
)
def test_what_counts_as_agreement(changes: dict[str, Any], expected: str | None) -> None:
    trouble = unlike(replace(GOOD, **changes), model="tuned", engine="openai", reference="hf")
    assert (trouble is None) == (expected is None)
    if trouble is not None and expected is not None:
        assert expected in trouble.message and trouble.fix


def test_items_are_spread_over_the_rows() -> None:
    assert agreement.chosen(list(range(7))) == list(range(7))  # type: ignore[arg-type, comparison-overlap]
    found = agreement.chosen(list(range(1000)))  # type: ignore[arg-type]
    assert found == list(range(0, 1000, 20))  # type: ignore[comparison-overlap]
