"""Variants of LoRA that need more than wrapping: terms of the loss that peft leaves to others; what trains nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from peftlab.config import loading
from peftlab.errors import UserError
from peftlab.events import Started
from peftlab.job import preflight, runs
from peftlab.loop import preparation, training
from peftlab.modelling import adapting, weights
from peftlab.records.store import RunStore
from peftlab.rows import data
from peftlab.scores import scoring


def prepared(root: Path, adapter: dict[str, Any], **groups: Any) -> tuple[Any, Any]:
    spec = loading.load(toy.write_experiment(root, adapter={**toy.LORA, "lora_dropout": 0.0, **adapter}, **groups))
    return spec, preparation.prepare(spec, data.load(spec), scoring.load_base(spec))


@pytest.mark.parametrize("options", [{}, {"beta": 0.5, "gamma": 0.25}])
def test_kasa_regularises_by_its_papers_equations(tmp_path: Path, options: dict[str, float]) -> None:
    """Wang et al. 2024 (https://arxiv.org/abs/2412.06071), equations 9 to 12: beta ||dS||^2 of the singular values, and
    gamma (||B^T B - I|| + ||A A^T - I||); on top of the loss of the task, once a step.
    """
    spec, ready = prepared(tmp_path, {"kasa_config": options}, batch={"gradient_accumulation_steps": 2})
    model = ready.built.model
    expected = 0.0
    for layer in model.modules():
        if type(layer).__name__ == "Linear" and "default" in getattr(layer, "lora_A", {}):
            a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
            one = torch.eye(len(a), dtype=torch.double)
            spectrum = (layer.lora_diag["default"].double() ** 2).sum()
            expected += options.get("beta", 1e-4) * float(spectrum)
            expected += options.get("gamma", 1e-3) * float((b.T @ b - one).norm() + (a @ a.T - one).norm())
    step = next(training.steps(ready.built, ready.stream, spec, ready.state))
    assert step.method_loss == pytest.approx(expected, rel=1e-4)
    assert expected > 0


def test_monte_carlo_lora_adds_its_variational_terms(tmp_path: Path) -> None:
    spec, ready = prepared(tmp_path, {"monteclora_config": {"num_samples": 4}})
    tuner = ready.built.model.base_model
    seen: list[torch.Tensor] = []
    whole = tuner._get_monteclora_loss

    def noted() -> torch.Tensor:
        seen.append(whole())
        return seen[-1]

    tuner._get_monteclora_loss = noted
    steps = list(training.steps(ready.built, ready.stream, spec, ready.state))
    assert [step.method_loss for step in steps] == [float(term) for term in seen]
    assert all(term.requires_grad and float(term) for term in seen)
    weights.save(ready.built, tmp_path / "saved")
    loaded = weights.load_trained(spec, tmp_path / "saved").model.eval()
    ids = torch.arange(20)[None] + 9
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, ready.built.model.eval()(input_ids=ids).logits)


def test_plain_lora_has_no_term_of_its_own(tmp_path: Path) -> None:
    spec, ready = prepared(tmp_path, {})
    assert next(training.steps(ready.built, ready.stream, spec, ready.state)).method_loss is None


def test_alora_trains_where_its_tokens_are_and_is_refused_where_they_are_not(tmp_path: Path) -> None:
    present = [toy.VOCABULARY[character] for character in " ="]
    spec, ready = prepared(tmp_path, {"alora_invocation_tokens": present})
    assert next(training.steps(ready.built, ready.stream, spec, ready.state)).grad_norm > 0
    absent = [toy.VOCABULARY[character] for character in "??"]
    folder = toy.write_experiment(
        tmp_path,
        name="lora/absent",
        adapter={**toy.LORA, "alora_invocation_tokens": absent},
        train={"evaluate": "none"},
    )
    with pytest.raises(UserError, match="40 of 40 training rows do not hold them"):
        runs.run(loading.load(folder), RunStore(tmp_path / "results"))
    assert RunStore(tmp_path / "results").records() == []


def test_qalora_on_a_base_that_is_not_its_own_is_said_to_be_plain(tmp_path: Path) -> None:
    adapter = {**toy.LORA, "use_qalora": True, "qalora_group_size": 16}
    spec = loading.load(toy.write_experiment(tmp_path, adapter=adapter))
    started = next(
        event for event in runs.events(spec, RunStore(tmp_path / "results"), None) if isinstance(event, Started)
    )
    assert any("this is plain LoRA" in note for note in started.notes)
    stored = spec.model_copy(update={"quant": spec.quant.model_copy(update={"method": "gptq"})})
    assert adapting.notes(stored) == []


def test_the_schedule_of_adamss_is_filled_from_the_budget(tmp_path: Path) -> None:
    asked = {"peft_type": "ADAMSS", "use_asa": True, "init_warmup": 4}

    def made(**more: Any) -> Any:
        return adapting.adapter_config({**asked, **more}, "causal", max_steps=60)[0]

    assert made().final_warmup == 30
    assert made(final_warmup=44).final_warmup == 44
    assert made(final_warmup=None).final_warmup == 30
    assert made(use_asa=False).final_warmup == 1000
    for wrong in ({"final_warmup": 61}, {"init_warmup": 30}, {"init_warmup": 40, "final_warmup": 40}):
        with pytest.raises(UserError, match="there are 60 steps"):
            made(**wrong)
    with pytest.raises(UserError, match="from step '4'"):
        made(init_warmup="4")


def test_arrow_is_refused_with_its_reason(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, adapter={**toy.LORA, "arrow_config": {"top_k": 2}})
    with pytest.raises(UserError, match="router over adapters that are trained already"):
        preflight.check(loading.load(folder))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"])
def test_adapters_that_belong_on_a_changed_base_are_no_experts(tmp_path: Path, start: str) -> None:
    expert = tmp_path / "expert"
    expert.mkdir()
    (expert / "adapter_config.json").write_text(json.dumps({**toy.LORA, "init_lora_weights": start}))
    (expert / "adapter_model.safetensors").write_bytes(b"")
    adapter = {"peft_type": "XLORA", "hidden_size": 32, "adapters": {"0": str(expert)}}
    with pytest.raises(UserError, match="changes the base's weights"):
        preflight.check(loading.load(toy.write_experiment(tmp_path, adapter=adapter)))


def test_an_expert_is_named_by_a_path_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every path of a config is. Without a slash the run's key would not see what lies there."""
    expert = tmp_path / "here" / "expert"
    expert.mkdir(parents=True)
    (expert / "adapter_config.json").write_text(json.dumps(toy.LORA))
    (expert / "adapter_model.bin").write_bytes(b"\x80\x04.")

    def said(place: str) -> UserError:
        adapter = {"peft_type": "XLORA", "hidden_size": 32, "adapters": {"0": place}}
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(UserError) as found:
            preflight.check(loading.load(toy.write_experiment(root, adapter=adapter)))
        return found.value

    assert "relative to the current folder" in str(said("./expert").fix)
    monkeypatch.chdir(tmp_path / "here")
    assert "a pickle is not read" in said("./expert").message
    assert said("expert").fix == "write ./expert"


def test_an_expert_that_is_a_pickle_is_not_read(tmp_path: Path) -> None:
    expert = tmp_path / "expert"
    expert.mkdir()
    (expert / "adapter_config.json").write_text(json.dumps(toy.LORA))
    (expert / "adapter_model.bin").write_bytes(b"\x80\x04.")
    adapter = {"peft_type": "XLORA", "hidden_size": 32, "adapters": {"0": str(expert)}}
    with pytest.raises(UserError, match="a pickle is not read"):
        preflight.check(loading.load(toy.write_experiment(tmp_path, adapter=adapter)))
