"""Several runs, adapters and models in one go: equal to each alone, each base loaded once, only what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import toy
from peftlab.config import benchmarks, loading
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.events import Evaluated, Event, Stage
from peftlab.job import evaluating, runs
from peftlab.modelling import models, swapping, weights
from peftlab.records.record import Record
from peftlab.records.store import RunStore
from peftlab.scores import evaluation
from peftlab.verdicts import suites

ADAPTERS: dict[str, dict[str, Any] | None] = {
    "lora": toy.LORA,
    "dora": {**toy.LORA, "use_dora": True, "modules_to_save": ["norm"]},
    "prefix": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
    "knowhira": {"peft_type": "KNOWHIRA", "r": 4, "target_modules": ["q_proj"]},
    "pissa": {**toy.LORA, "lora_dropout": 0.0, "init_lora_weights": "pissa"},
    "pissa-r2": {**toy.LORA, "r": 2, "lora_dropout": 0.0, "init_lora_weights": "pissa"},
    "full": None,
}


def trained(root: Path, adapters: dict[str, Any], **more: Any) -> dict[str, Record]:
    """A run of each adapter on one model, trained and not scored."""
    found = {}
    for name, adapter in adapters.items():
        far = {"learning_rate": 0.3, "lr_scheduler_type": "constant", "warmup_steps": 0}
        short = {"max_steps": 1, "evaluate": "none"}
        folder = toy.write_experiment(root, name=f"{name}/toy", adapter=adapter, train=short, optim=far, **more)
        found[name] = runs.run(loading.load(folder), RunStore(root / "results"))
    return found


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Record]]:
    """Runs of several methods on one model."""
    root = tmp_path_factory.mktemp("material")
    return root, trained(root, ADAPTERS)


@pytest.fixture
def records(material: tuple[Path, dict[str, Record]], tmp_path: Path) -> dict[str, Record]:
    """The same runs, in a results folder of one test."""
    root, found = material
    shutil.copytree(root / "temporary_results", tmp_path / "temporary_results")
    return found


def benchmark(root: Path, name: str = "both", **more: Any) -> str:
    """Two toy tasks as a benchmark."""
    tasks = []
    for number, rows in enumerate((7, 12)):
        path = toy.write_task(root / f"part-{number}", test=rows)
        named = path.with_name(f"part{number}.yaml")
        path.rename(named)
        tasks.append(str(named))
    path = root / f"{name}.yaml"
    path.write_text(json.dumps({"description": "two parts", "tasks": tasks, **more}))
    return str(path)


def evaluate(references: list[str], results: Path, **more: Any) -> list[Event]:
    return list(evaluating.evaluate(references, RunStore(results), **more))


def stored(results: Path) -> dict[str, bytes]:
    """The files that say what was predicted, and how it was graded."""
    found = [path for path in results.rglob("*") if path.name == "samples.jsonl" or path.suffix == ".npy"]
    return {str(path.relative_to(results)): path.read_bytes() for path in found}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was loaded: `base`, or the folder of whole weights."""
    seen: list[str] = []
    original = models.load

    def counted(*given: Any, **named: Any) -> models.Base:
        seen.append("base" if named.get("weights") is None else "whole")
        return original(*given, **named)

    monkeypatch.setattr(models, "load", counted)
    monkeypatch.setattr(weights, "load", counted)
    return seen


# ----------------------------------------------------------------------------------------------------------- swapping


def test_adapters_in_turn_on_one_base_score_as_each_alone(
    tmp_path: Path, records: dict[str, Record], loads: list[str]
) -> None:
    shutil.copytree(tmp_path / "temporary_results", tmp_path / "temporary_alone")
    loads.clear()
    evaluate([record.key for record in reversed(records.values())], tmp_path / "results")
    assert loads == ["base", "base", "whole"]  # what changes the base needs it last, and each a fresh one
    for record in records.values():
        evaluate([record.key], tmp_path / "alone")
    together, apart = stored(tmp_path / "temporary_results"), stored(tmp_path / "temporary_alone")
    assert len(together) == 3 * len(ADAPTERS) and together == apart
    assert stored(tmp_path / "results") == stored(tmp_path / "alone")
    different = {content for name, content in together.items() if name.endswith("samples.jsonl")}
    assert len(different) > 3  # else nothing was put on


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_base_is_put_back_whatever_was_done_to_its_modules(tmp_path: Path, architecture: str) -> None:
    model = models.load(
        loading.bare(str(toy.save_model(tmp_path / "m", architecture)), task="gsm8k").model, "causal"
    ).model
    before, tokens = swapping.look(model), torch.arange(9)[None]
    model.eval()
    clean = model(tokens).logits
    first = next(module for module in model.modules() if isinstance(module, nn.LayerNorm | nn.Embedding))
    first.register_forward_hook(lambda module, inputs, output: output * 2)
    for name, module in list(model.named_modules()):
        if name.endswith("mlp"):
            model.set_submodule(name, nn.Identity())
            module.forward = lambda *given: given[0]
    model.requires_grad_(False)
    model.new_attribute = nn.Linear(2, 2)
    assert not torch.equal(model(tokens).logits, clean)
    assert swapping.put_back(model, before)
    model.eval()
    assert torch.equal(model(tokens).logits, clean)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_changed_tensor_or_config_is_seen(tmp_path: Path) -> None:
    def changes(change: Callable[[Any], Any]) -> bool:
        model = AutoModelForCausalLM.from_config(toy.config("llama"))
        before = swapping.look(model)
        with torch.no_grad():
            change(model)
        return not swapping.put_back(model, before)

    assert not changes(lambda model: None)
    assert changes(lambda model: model.lm_head.weight[3, 4].add_(1e-6))
    assert changes(lambda model: model.model.norm.weight.data.mul_(2))
    assert changes(lambda model: setattr(model.config, "use_cache", False))


def test_an_adapter_that_cannot_be_put_on_leaves_no_base_behind(tmp_path: Path, records: dict[str, Record]) -> None:
    record = records["lora"]
    spec = RunSpec.model_validate(record.spec)
    folder = RunStore(tmp_path / "results").folder_of(record) / "adapter"
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")
    bases = swapping.Bases()
    with pytest.raises(UserError, match="cannot load the saved adapter"):
        bases.trained(spec, broken)
    clean = weights.load_trained(spec, folder)
    again, tokens = bases.trained(spec, folder), torch.arange(9)[None]
    assert torch.equal(again.model.eval()(input_ids=tokens).logits, clean.model.eval()(input_ids=tokens).logits)


# --------------------------------------------------------------------------------------------------------- benchmarks


def test_a_benchmark_scores_only_what_is_missing(
    tmp_path: Path, records: dict[str, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, named = tmp_path / "results", benchmark(tmp_path)
    keys = [records["lora"].key, records["dora"].key]
    task = benchmarks.load(named).tasks[0]
    evaluate([keys[0]], results, task=task)
    made = [event for event in evaluate(keys, results, benchmark=[named]) if isinstance(event, Evaluated)]
    fresh = [(event.of, event.evaluation.task, event.evaluation.role) for event in made if not event.reused]
    assert fresh == [
        (keys[0], "part1", "base"),
        (keys[0], "part1", "last"),
        (keys[1], "part0", "last"),
        (keys[1], "part1", "last"),
    ]
    assert len(made) == 8 and {event.evaluation.part for event in made} == {"test"}
    monkeypatch.setattr(evaluation, "score", None)
    again = [event for event in evaluate(keys, results, benchmark=[named]) if isinstance(event, Evaluated)]
    assert len(again) == 8 and all(event.reused for event in again)
    sheet = suites.sheet(named, [(str(event.of), event.evaluation) for event in again])
    assert sheet.columns == ("run", "step", "part0", "part1", "mean", "95 % interval")
    assert [row[:2] for row in sheet.rows] == [(keys[0], "-"), (keys[0], "1"), (keys[1], "-"), (keys[1], "1")]


def test_the_mean_of_a_benchmark_by_hand(tmp_path: Path) -> None:
    """0.5 and 0.9 with errors 0.03 and 0.04: mean 0.7, error sqrt(0.0009 + 0.0016) / 2 = 0.025."""
    named = benchmark(tmp_path)
    results = tmp_path / "results"
    events = evaluate([str(toy.save_model(tmp_path / "m"))], results, benchmark=named)
    found = [event.evaluation for event in events if isinstance(event, Evaluated)]
    scored = []
    for one, mean, error in zip(found, (0.5, 0.9), (0.03, 0.04), strict=True):
        metric = one.metrics["exact_match"].model_copy(update={"mean": mean, "standard_error": error})
        scored.append(("m", one.model_copy(update={"metrics": {"exact_match": metric}})))
    (row,) = suites.sheet(named, scored).rows
    assert row == ("m", "-", "0.5000", "0.9000", "0.7000", "0.6510 to 0.7490")
    (half,) = suites.sheet(named, scored[:1]).rows
    assert half == ("m", "-", "0.5000", "-", "-", "-")
    told = {"partial": True, "baselines": {"baseline_majority_class": 0.25}}
    sheet = suites.sheet(named, [("m", scored[0][1].model_copy(update=told)), scored[1]])
    assert sheet.rows == (("m", "-", "0.5000*", "0.9000", "0.7000*", "0.6510 to 0.7490"),)
    assert sheet.notes == (
        "* from a part of the data: part0; a mean with such scores is marked too",
        "without a model: part0 majority_class 0.2500",
    )


def test_a_model_needs_the_test_rows_alone(tmp_path: Path) -> None:
    """Where none are shown, training rows are not read; what is shown are training rows."""
    task, model = toy.write_task(tmp_path / "task"), str(toy.save_model(tmp_path / "m"))
    (tmp_path / "task" / "train.jsonl").unlink()
    (tmp_path / "task" / "valid.jsonl").unlink()
    found = [one for one in evaluate([model], tmp_path / "results", task=str(task)) if isinstance(one, Evaluated)]
    assert [one.evaluation.num_items for one in found] == [12]
    with pytest.raises(UserError, match="has no file for split"):
        evaluate([model], tmp_path / "results", task=str(task), overrides={"generation.few_shot": 1})


def test_a_classifier_is_scored_on_what_it_was_trained_on(tmp_path: Path) -> None:
    head = {"peft_type": "LORA", "r": 4, "target_modules": ["query", "value"]}
    results = tmp_path / "results"
    (record,) = trained(tmp_path, {"lora": head}, architecture="bert").values()
    own = tmp_path / "task-classify" / "toy.yaml"
    other = toy.write_task(tmp_path / "other", kind="classify")
    other = other.rename(other.with_name("other.yaml"))
    named = tmp_path / "mixed.yaml"
    named.write_text(json.dumps({"tasks": [str(own), str(other), "gsm8k"]}))
    events = evaluate([record.key], results, benchmark=str(named))
    assert {event.evaluation.task for event in events if isinstance(event, Evaluated)} == {"toy"}
    said = [event.text for event in events if isinstance(event, Stage) and event.text.startswith("left out")]
    assert len(said) == 2 and "head knows nothing of 'other'" in said[0] and "'gsm8k' (generate)" in said[1]
    named.write_text(json.dumps({"tasks": ["gsm8k"]}))
    with pytest.raises(UserError, match="has no head for that"):
        evaluate([record.key], results, benchmark=str(named))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tasks": []}, "at least 1"),
        ({"tasks": ["gsm8k", "gsm8k"]}, "named twice"),
        ({"tasks": ["gsm8j"]}, "benchmark 'bad': unknown task 'gsm8j'"),
        ({"tasks": ["gsm8k"], "metric": {"mrpc": "acc"}}, "unknown task 'mrpc'"),
        ({"tasks": ["gsm8k"], "metric": {"gsm8k": "exact"}}, "unknown metric 'exact'"),
        ({"tasks": ["gsm8k"], "row": 2}, "unknown key 'row'"),
    ],
)
def test_a_benchmark_with_a_mistake_is_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        evaluate(["hub:org/none"], tmp_path / "results", benchmark=str(path))
    assert not (tmp_path / "results").exists()


def test_an_unknown_benchmark_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--benchmark: unknown benchmark 'commonsens'") as caught:
        evaluate(["hub:org/none"], tmp_path / "results", benchmark="commonsens")
    assert caught.value.fix == "did you mean 'commonsense'?"


def test_every_benchmark_that_is_brought_can_be_read() -> None:
    found = {name: benchmarks.load(name) for name in benchmarks.available()}
    assert len(found["glue"].tasks) == 6 and len(found["glue_full"].tasks) == 10
    assert (len(found["commonsense"].tasks), len(found["commonsense9"].tasks)) == (8, 9)
    assert found["general"].rows == 200
    for one in found.values():
        assert one.description and one.citation
        for task in one.tasks:
            benchmarks.task_of(one, task)


# ----------------------------------------------------------------------------------------------------- saved adapters


@pytest.mark.parametrize("name", ["lora", "prefix", "knowhira", "pissa"])
def test_a_saved_adapter_of_no_run_scores_as_its_run(tmp_path: Path, name: str, records: dict[str, Record]) -> None:
    results, record = tmp_path / "results", records[name]
    store = RunStore(results)
    foreign = shutil.copytree(store.folder_of(record) / "adapter", tmp_path / "downloaded")
    named = benchmark(tmp_path)
    same = {"batch.per_device_eval_batch_size": 5}
    base = {"model.id": record.spec["model"]["id"]} if name == "knowhira" else {}  # its config does not name it
    events = evaluate([str(foreign)], results, benchmark=named, overrides={**same, **base})
    events += evaluate([record.key], results, benchmark=named, overrides=same)
    made = [event.evaluation for event in events if isinstance(event, Evaluated) and not event.reused]
    adapters = [one for one in made if one.settings["model_id"].endswith("+downloaded")]
    tuned = [one for one in made if one.role == "last"]
    assert [one.task for one in adapters] == [one.task for one in tuned] == ["part0", "part1"]
    for first, second in zip(adapters, tuned, strict=True):
        assert first.folder is not None and first.folder.startswith("base/") and first.role == "base"
        kept = store.folder_of(record) / str(second.folder) / "samples.jsonl"
        assert (results / first.folder / "samples.jsonl").read_bytes() == kept.read_bytes()
    again = evaluate([str(foreign)], results, benchmark=named, overrides={**same, **base})
    assert [event.reused for event in again if isinstance(event, Evaluated)] == [True, True]


def test_the_content_of_an_adapter_is_its_key(tmp_path: Path, records: dict[str, Record]) -> None:
    results, store = tmp_path / "results", RunStore(tmp_path / "results")
    foreign = shutil.copytree(store.folder_of(records["lora"]) / "adapter", tmp_path / "downloaded")
    same = toy.write_task(tmp_path / "task")
    keys = []
    for value in (0.0, 1.0):
        tensors = load_file(foreign / "adapter_model.safetensors")
        name = min(tensors)
        tensors[name][0, 0] += value
        save_file(tensors, foreign / "adapter_model.safetensors", metadata={"format": "pt"})
        (event,) = [one for one in evaluate([str(foreign)], results, task=str(same)) if isinstance(one, Evaluated)]
        assert not event.reused
        keys.append(event.evaluation.key)
    assert len({*keys}) == 2


def test_a_saved_adapter_whose_base_is_gone_names_the_setting(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    for base, words in ((None, "names no base model"), ("/no/such/model", "/no/such/model is not here")):
        (folder / "adapter_config.json").write_text(json.dumps({**toy.LORA, "base_model_name_or_path": base}))
        with pytest.raises(UserError, match=words) as caught:
            evaluate([str(folder)], tmp_path / "results", task="gsm8k")
        assert caught.value.fix is not None and "model.id=" in caught.value.fix
