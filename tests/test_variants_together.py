"""Variants and starts of LoRA that do not go together, or not with their base: refused before anything is trained.

Each of these is taken by peft without a word, and trains something else than its name says, or what cannot be loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from peftlab.config import loading
from peftlab.config.spec import RunSpec, method_name
from peftlab.errors import UserError
from peftlab.invariants import examination, findings
from peftlab.job import preflight
from peftlab.loop import preparation
from peftlab.modelling.adapting import method_of
from peftlab.rows import data
from peftlab.scores import scoring
from starts_material import spec_of

STARTS = ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq", "eva")
CHANGING = STARTS[:-1]
LOFTQ = {"lora_alpha": 4, "use_rslora": False, "loftq_config": {"loftq_bits": 8}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("together")


def started(place: Path, start: str, adapter: dict[str, Any], **groups: Any) -> Any:
    return spec_of(place, start, adapter={**(LOFTQ if start == "loftq" else {}), **adapter}, **groups)


def lora(place: Path, adapter: dict[str, Any], **groups: Any) -> Any:
    """An experiment of plain LoRA with these keys."""
    name = f"lora/{len(list(place.glob('experiments/lora/*')))}"
    return loading.load(toy.write_experiment(place, name=name, adapter={**toy.LORA, **adapter}, **groups))


@pytest.mark.parametrize("start", STARTS)
def test_a_start_begins_on_modules_not_on_single_weights(place: Path, start: str) -> None:
    spec = started(place, start, {"target_parameters": ["gate_proj.weight"]})
    with pytest.raises(UserError, match="target_parameters names single weights"):
        preflight.check(spec)
    with pytest.raises(UserError, match="target_parameters names single weights"):
        examination.trial_of(spec, place)


def test_single_weights_are_trained_where_nothing_changes_them_beforehand(place: Path) -> None:
    preflight.check(
        lora(place, {"target_parameters": ["gate_proj.weight"], "lora_dropout": 0.0, "init_lora_weights": "gaussian"})
    )


@pytest.mark.parametrize(
    "other",
    [
        {"kasa_config": {"beta": 0.01}},
        {"alora_invocation_tokens": [9]},
        {"use_bdlora": {"nblocks": 2, "target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["v_proj"]}},
        {"monteclora_config": {}},
    ],
)
def test_variants_that_do_not_go_with_a_changed_base(place: Path, other: dict[str, Any]) -> None:
    for start in CHANGING:
        with pytest.raises(UserError, match=f"'{start}' does not go with {next(iter(other))}"):
            preflight.check(started(place, start, other))
    preflight.check(started(place, "orthogonal", {"use_dora": True}))
    preflight.check(started(place, "pissa", {"use_dora": True}))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_a_rank_beyond_a_weights_factors(place: Path, start: str) -> None:
    """v_proj of the toy is 16 x 32: its decomposition has 16 factors."""
    more = {"lora_alpha": 17} if start == "loftq" else {}
    with pytest.raises(UserError, match=r"v_proj \(16 x 32\) has 16 to give: r = 17 is too large"):
        preflight.check(started(place, start, {"r": 17, **more}))
    preflight.check(started(place, start, {"r": 16, **(more and {"lora_alpha": 16})}))


def test_a_rank_of_a_pattern_counts_too(place: Path) -> None:
    preflight.check(started(place, "pissa", {"r": 17, "rank_pattern": {"v_proj": 16}}))
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.v_proj .* r = 17 is too large"):
        preflight.check(started(place, "pissa", {"rank_pattern": {"layers.1.self_attn.v_proj": 17}}))


def test_lora_ga_takes_every_other_factor(place: Path) -> None:
    with pytest.raises(UserError, match=r"v_proj \(16 x 32\) has 8 to give: r = 9 is too large"):
        preflight.check(started(place, "lora_ga", {"r": 9}))
    spec = started(place, "lora_ga", {"r": 8})
    preparation.prepare(spec, data.load(spec), scoring.load_base(spec))


def test_eva_finds_no_more_components_than_a_layer_sees(place: Path) -> None:
    with pytest.raises(UserError, match=r"EVA looks for r \* rho = 34 components .* which has 32"):
        preflight.check(started(place, "eva", {"r": 17}))
    preflight.check(started(place, "eva", {"r": 32, "eva_config": {"rho": 1.0}}))


@pytest.mark.parametrize("method", ["bnb-nf4", "bnb-int8"])
@pytest.mark.parametrize("key", ["kasa_config", "monteclora_config", "use_bdlora"])
def test_a_variant_that_a_base_of_few_bits_does_not_have(place: Path, key: str, method: str) -> None:
    pytest.importorskip("bitsandbytes")
    options = {"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["v_proj"], "nblocks": 2}
    spec = lora(place, {key: options if key == "use_bdlora" else {}}, quant={"method": method})
    with pytest.raises(UserError, match=rf"{key}: peft does not know this on a layer like .*q_proj \(Linear"):
        preflight.check(spec)


def test_a_start_in_capitals_would_leave_half_of_it_out(place: Path) -> None:
    with pytest.raises(UserError, match="init_lora_weights = 'MiCA'") as found:
        preflight.check(lora(place, {"init_lora_weights": "MiCA"}))
    assert found.value.fix == "write it as 'mica'"
    preflight.check(lora(place, {"init_lora_weights": "mica"}))


def test_a_variant_that_a_base_of_few_bits_has(place: Path) -> None:
    pytest.importorskip("bitsandbytes")
    preflight.check(lora(place, {"use_dora": True}, quant={"method": "bnb-nf4"}))
    preflight.check(lora(place, {"use_rslora": True}, quant={"method": "bnb-nf4"}))


@pytest.mark.parametrize(
    "key",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": "orthogonal"},
        {"kasa_config": {}},
        {"use_rslora": True},
        {"alora_invocation_tokens": [9]},
    ],
)
def test_adalora_has_no_variants_of_lora(place: Path, key: dict[str, Any]) -> None:
    adapter = {"peft_type": "ADALORA", "target_modules": ["q_proj"], "init_r": 4, "target_r": 2, "r": 8, "tinit": 1}
    name = f"adalora/{len(list(place.glob('experiments/adalora/*')))}"
    spec = loading.load(toy.write_experiment(place, name=name, adapter={**adapter, **key}))
    with pytest.raises(UserError, match=f"{next(iter(key))} = .*: this is a key of LoRA, which AdaLoRA takes"):
        preflight.check(spec)
    preflight.check(loading.load(toy.write_experiment(place, name=f"{name}-plain", adapter=adapter)))


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"monteclora_config": {}}, "lora_monteclora"),
        ({"kasa_config": {}, "loftq_config": {}}, "lora_kasa"),
        ({"use_bdlora": {"nblocks": 2}}, "lora_bdlora"),
        ({"loftq_config": {}, "eva_config": None, "use_dora": False, "kasa_config": None}, "lora"),
        ({"loftq_config": {}, "eva_config": {}, "init_lora_weights": "eva"}, "lora_eva"),
    ],
)
def test_a_variant_without_options_has_its_name(keys: dict[str, Any], name: str) -> None:
    assert method_name({"peft_type": "LORA", **keys}) == name


def test_a_variant_without_options_has_its_plug_in(place: Path) -> None:
    assert method_of({**toy.LORA, "monteclora_config": {}}).no_checkpointing is not None
    spec = lora(place, {"monteclora_config": {}}, model={"gradient_checkpointing": True})
    with pytest.raises(UserError, match="random samples"):
        preflight.check(spec)


@pytest.mark.parametrize("start", ["pissa", "lora_ga"])
def test_what_is_stated_of_a_start_holds_beside_another_variant(place: Path, start: str) -> None:
    alone, both = (started(place, start, {"use_dora": dora}) for dora in (False, True))
    assert findings.stated(both, "disable") == findings.stated(alone, "disable") is not None
    assert both.method == f"lora_{'_'.join(sorted(['dora', 'rslora', start]))}"


def test_loftq_takes_doras_magnitudes_of_the_weight_that_it_begins_with(place: Path) -> None:
    """Liu et al. 2024 (https://arxiv.org/abs/2402.09353), equation 5: m is the norm of V + B A at the start."""
    pytest.importorskip("bitsandbytes")
    spec = started(place, "loftq", {"use_dora": True, "loftq_config": {"loftq_bits": 4}, "lora_dropout": 0.0})
    built = preparation.prepare(spec, data.load(spec), scoring.load_base(spec)).built
    seen = 0
    for layer in built.model.modules():
        if "default" in getattr(layer, "lora_magnitude_vector", {}):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            norms = (layer.get_base_layer().weight + b @ a).norm(dim=1).detach()
            torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight, norms, atol=1e-6, rtol=0)
            seen += 1
    assert seen == 4
    assert built.trainable().keys() >= {
        f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_magnitude_vector.default.weight"
        for layer in (0, 1)
        for name in ("q_proj", "v_proj")
    }


def test_an_output_folder_gets_no_adapter_that_only_works_here(place: Path) -> None:
    pytest.importorskip("bitsandbytes")

    def given(start: str) -> RunSpec:
        spec: RunSpec = started(place, start, {})
        return spec.model_copy(update={"save": spec.save.model_copy(update={"output_dir": str(place / "given")})})

    with pytest.raises(UserError, match=r"save\.output_dir = .*'loftq' belongs on the base that it changed"):
        preflight.check(given("loftq"))
    preflight.check(given("pissa"))
