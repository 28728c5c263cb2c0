"""Optimizers by name: torch's, bitsandbytes' and peft's own; their groups, rates, decay and resume."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from comparing import outcome
from fork_runner import Runner
from peftlab.config import loading
from peftlab.config.groups import OptimSettings
from peftlab.errors import UserError
from peftlab.job import preflight
from peftlab.loop import optim, training
from peftlab.modelling import adapting, models

PLUS = {"optimizer": "lora+", "optimizer_kwargs": {"loraplus_lr_ratio": 16.0}}
NAMED: dict[str, dict[str, Any]] = {
    "lora+": PLUS,
    "lora-fa": {"optimizer": "lora-fa", "weight_decay": 0.01},
    "riemannian": {"optimizer": "riemannian", "optimizer_kwargs": {"reg": 0.1}},
    "AdamW8bit": {"optimizer": "AdamW8bit"},
    "PagedAdamW32bit": {"optimizer": "PagedAdamW32bit"},
}
WITHOUT_DROPOUT = {**toy.LORA, "lora_dropout": 0.0}


def started(tmp_path: Path, adapter: dict[str, Any] | None = WITHOUT_DROPOUT, **groups: Any) -> tuple[Any, ...]:
    resolved = loading.load(toy.write_experiment(tmp_path, adapter=adapter, **groups))
    built = adapting.adapt(models.load(resolved.model, "causal"), resolved)
    return resolved, built, training.start(built, resolved, total_steps=resolved.train.max_steps)


def step_once(built: models.Built, optimizer: torch.optim.Optimizer) -> None:
    ids = torch.tensor([[10, 11, 12, 13, 14, 15]])
    built.model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def side(name: str) -> str:
    return "B" if "lora_B" in name else "A"


# ------------------------------------------------------------------------------------------------- groups and rates


def test_a_ratio_of_rates_is_kept_over_the_whole_schedule(tmp_path: Path) -> None:
    resolved, built, state = started(tmp_path, optim=PLUS | {"learning_rate": 1e-3})
    names = {id(parameter): name for name, parameter in built.trainable().items()}
    for step in range(1, 7):
        rate = optim.set_rate(state.optimizer, resolved.optim, step, 6)
        assert rate == optim.learning_rate(resolved.optim, step, 6)
        seen = {
            side(names[id(parameter)]): group["lr"]
            for group in state.optimizer.param_groups
            for parameter in group["params"]
        }
        assert seen == {"A": rate, "B": pytest.approx(16 * rate, rel=1e-12)}
    assert len([1 for group in state.optimizer.param_groups for _ in group["params"]]) == len(built.trainable())


def test_the_first_step_moves_both_sides_by_their_own_rate(tmp_path: Path) -> None:
    """Adam's first step is the rate times the gradient's sign, so the rates can be read off the weights."""
    resolved, built, state = started(tmp_path, optim=PLUS | {"learning_rate": 1e-3, "warmup_steps": 0})
    with torch.no_grad():  # B is 0 at the start, which gives A no gradient
        for name, parameter in built.trainable().items():
            if side(name) == "B":
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    before = {name: parameter.detach().clone() for name, parameter in built.trainable().items()}
    optim.set_rate(state.optimizer, resolved.optim, 1, 6)
    step_once(built, state.optimizer)
    for name, parameter in built.trainable().items():
        moved = (parameter.detach() - before[name]).abs().max().item()
        assert moved == pytest.approx({"A": 1e-3, "B": 16e-3}[side(name)], rel=1e-3)


def test_one_rate_for_all_is_set_as_it_is(tmp_path: Path) -> None:
    """Bit for bit: what trained before groups had rates of their own must train the same."""
    resolved, _, state = started(tmp_path, optim={"learning_rate": 0.1 + 0.2})
    for step in range(1, 7):
        optim.set_rate(state.optimizer, resolved.optim, step, 6)
        assert [group["lr"] for group in state.optimizer.param_groups] == [optim.learning_rate(resolved.optim, step, 6)]


def test_one_side_alone_is_trained(tmp_path: Path) -> None:
    resolved, built, state = started(tmp_path, optim={"optimizer": "lora-fa"})
    assert built.trainable() and {side(name) for name in built.trainable()} == {"B"}
    before = {name: parameter.detach().clone() for name, parameter in built.model.named_parameters()}
    optim.set_rate(state.optimizer, resolved.optim, 3, 6)
    step_once(built, state.optimizer)
    moved = {name for name, parameter in built.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(built.trainable())


# --------------------------------------------------------------------------------------------------- weight decay


@pytest.mark.parametrize(
    ("settings", "decays"),
    [
        ({}, {0.0}),  # ours, not torch's 0.01
        ({"weight_decay": 0.01}, {0.01}),
        ({"optimizer_kwargs": {"weight_decay": 0.02}}, {0.02}),
        ({"optimizer": "Adam", "weight_decay": 0.1}, {0.1}),
        ({"optimizer": "lora-fa"}, {0.0}),
        ({"optimizer": "lora-fa", "weight_decay": 0.1}, {0.1}),
        ({"optimizer": "riemannian", "weight_decay": 0.1}, {0.1}),
        ({"optimizer": "riemannian"}, {0.0}),
        (PLUS, {0.0}),
        (PLUS | {"weight_decay": 0.1}, {0.1}),  # under a name of its own, which the plain one becomes
        ({**PLUS, "optimizer_kwargs": {"loraplus_lr_ratio": 2.0, "loraplus_weight_decay": 0.3}}, {0.3}),
    ],
)
def test_decay_is_what_the_settings_say(tmp_path: Path, settings: dict[str, Any], decays: set[float]) -> None:
    _, _, state = started(tmp_path, optim=settings)
    assert {group["weight_decay"] for group in state.optimizer.param_groups if group["params"]} == decays


@pytest.mark.parametrize("settings", [{"weight_decay": 0.1}, {"optimizer_kwargs": {"weight_decay": 0.1}}])
def test_what_is_exempt_does_not_decay(settings: dict[str, Any]) -> None:
    names = ("layer.weight", "layer.bias", "block.LayerNorm.weight", "input_norm.weight", "norm.weight", "enormous")
    tensors = {name: torch.nn.Parameter(torch.ones(1)) for name in names}
    optimizer = optim.build(tensors, OptimSettings(decay_exempt="bias_and_norm", **settings))
    decays = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    assert [name for name in names if decays[id(tensors[name])] == 0.1] == ["layer.weight", "enormous"]
    assert set(decays.values()) == {0.1, 0.0} and len(decays) == len(names)
    only = optim.build({"b.bias": tensors["layer.bias"]}, OptimSettings(decay_exempt="bias_and_norm", **settings))
    assert [group["weight_decay"] for group in only.param_groups] == [0.0]


def test_a_decay_without_effect_is_refused(tmp_path: Path) -> None:
    given = {"loraplus_lr_ratio": 2.0, "loraplus_weight_decay": 0.3}
    with pytest.raises(UserError, match=r"optim.weight_decay = 0.1 has no effect on lora\+"):
        started(tmp_path, optim={"optimizer": "lora+", "weight_decay": 0.1, "optimizer_kwargs": given})


# ------------------------------------------------------------------------------------------------- found by rule


@pytest.mark.parametrize("name", ["lora+", "LoRA+", "loraplus", "lora-plus"])
def test_spellings_of_one_of_pefts(tmp_path: Path, name: str) -> None:
    _, _, state = started(tmp_path, optim=PLUS | {"optimizer": name})
    assert isinstance(state.optimizer, torch.optim.AdamW) and len(state.optimizer.param_groups) == 4


def refused(tmp_path: Path, adapter: dict[str, Any] | None = WITHOUT_DROPOUT, **settings: Any) -> UserError:
    resolved = loading.load(toy.write_experiment(tmp_path, adapter=adapter, optim=settings))
    with pytest.raises(UserError) as found:
        preflight.check(resolved)
    return found.value


def test_mistakes_are_found_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **settings: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load", load)
    error = refused(tmp_path / "1", optimizer="lora+")
    assert "needs 'loraplus_lr_ratio'" in error.message and "optim.optimizer_kwargs.loraplus_lr_ratio" in str(error.fix)
    assert "this experiment has none" in refused(tmp_path / "2", adapter=None, **PLUS).message
    ia3 = {"peft_type": "IA3", "target_modules": ["v_proj"], "feedforward_modules": []}
    assert "needs 'r'" in refused(tmp_path / "3", adapter=ia3, optimizer="lora-fa").message
    error = refused(tmp_path / "4", optimizer="lora*")
    assert "unknown optim.optimizer 'lora*'" in error.message
    error = refused(tmp_path / "5", optimizer="SparseAdam")
    assert "SparseAdam cannot be used here: it takes sparse gradients only" in error.message and error.fix
    assert "evaluates the loss several times" in refused(tmp_path / "6", optimizer="LBFGS").message
    exempt: dict[str, Any] = {**PLUS, "weight_decay": 0.1, "decay_exempt": "bias_and_norm"}
    assert "lora+ makes groups of its own" in refused(tmp_path / "7", **exempt).message


@pytest.mark.parametrize(
    "name", sorted(name for name, value in vars(torch.optim).items() if inspect.isclass(value) and name != "Optimizer")
)
def test_each_of_torchs_steps_or_is_refused(name: str) -> None:
    """A class that is new in torch, and wants other gradients or a closure, shows here."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    try:
        optimizer = optim.build({"weight": weight}, OptimSettings(optimizer=name))
    except UserError as error:
        assert name in ("LBFGS", "SparseAdam"), error
        return
    optimizer.step()
    assert not torch.equal(weight, torch.ones(2, 2))


def test_a_model_that_an_optimizer_cannot_work_on(tmp_path: Path) -> None:
    ia3 = {"peft_type": "IA3", "target_modules": ["v_proj"], "feedforward_modules": []}
    with pytest.raises(UserError, match="riemannian refuses its arguments, or this model"):
        started(tmp_path / "1", adapter=ia3, optim={"optimizer": "riemannian"})
    with pytest.raises(UserError, match="lora-fa refuses its arguments"):
        started(tmp_path / "2", optim={"optimizer": "lora-fa", "optimizer_kwargs": {"betas": [0.9, 0.9]}})


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else real(name, *rest)
    )
    for name in ("AdamW8bit", "PagedAdamW32bit", "PagedLion"):
        with pytest.raises(UserError, match="needs the library bitsandbytes") as found:
            optim.check(OptimSettings(optimizer=name), None)
        assert "peftlab[bnb]" in str(found.value.fix)
    with pytest.raises(UserError, match=r"unknown optim\.optimizer 'AdamWW'"):
        optim.check(OptimSettings(optimizer="AdamWW"), None)


def test_a_library_that_cannot_be_imported_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")

    def fail(name: str) -> Any:
        raise RuntimeError("no such symbol")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(UserError, match="cannot be imported: no such symbol"):
        optim.check(OptimSettings(optimizer="AdamW8bit"), None)


# --------------------------------------------------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    running = Runner()
    yield running
    running.close()


SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("lora-fa", "AdamW8bit", "riemannian", "PagedAdamW32bit")
]


@pytest.mark.parametrize("name", ["lora+", *SLOW])
def test_killed_run_resumes_to_the_same_bytes(runner: Runner, tmp_path: Path, name: str) -> None:
    if name.lower().endswith("bit"):
        pytest.importorskip("bitsandbytes")
    # tensors of 4096 numbers and more get 8-bit states
    adapter = {**toy.LORA, "r": 128, "target_modules": ["q_proj", "v_proj"]}
    folder = toy.write_experiment(tmp_path, adapter=adapter, optim=NAMED[name], train={"max_steps": 6})
    assert runner.run(folder, tmp_path / "whole") == 0
    whole = outcome(tmp_path / "whole")
    assert runner.run(folder, tmp_path / "results", kill="step", count=5) == -9
    assert list(tmp_path.glob("*results*/**/step-*/state.json")), "there is a checkpoint to go on from"
    assert runner.run(folder, tmp_path / "results") == 0
    assert outcome(tmp_path / "results") == whole
