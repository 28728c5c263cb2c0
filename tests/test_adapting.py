"""What an adapter's config asks for and the model does not have, or cannot train: refused by name, before any weight.

And what chance leaves out of a step is no mistake.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import toy
from peftlab.cli import main
from peftlab.config import loading
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.invariants import examination
from peftlab.job import preflight
from peftlab.loop import preparation, training
from peftlab.modelling import counting
from peftlab.rows import data
from peftlab.scores import scoring

QV = {"target_modules": ["q_proj", "v_proj"]}


def spec_of(root: Path, adapter: dict[str, Any] | None, **groups: Any) -> RunSpec:
    return loading.load(toy.write_experiment(root, adapter=adapter, **groups))


def lora(**values: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **QV, **values}


def refused(spec: RunSpec) -> str:
    with pytest.raises(UserError) as raised:
        preflight.check(spec)
    return f"{raised.value.message} | {raised.value.fix}"


# -------------------------------------------------------------------------------------------- names that match nothing

NOTHING: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "one target of two": (lora(target_modules=["q_proj", "vproj"]), ("target_modules names 'vproj'", "'v_proj'?")),
    "a target with its parent": (
        lora(target_modules=["q_proj", "self_att.v_proj"]),
        ("target_modules names 'self_att.v_proj'", "did you mean 'self_attn.v_proj'?"),
    ),
    "an exclusion": (lora(exclude_modules=["layers.0.qproj"]), ("exclude_modules names 'layers.0.qproj'",)),
    "an exclusion by expression": (lora(exclude_modules=r".*\.qproj"), ("exclude_modules names '.*\\.qproj'",)),
    "a rank of no target": (
        lora(rank_pattern={"k_proj": 2}),
        ("rank_pattern names 'k_proj'", "none of the target modules"),
    ),
    "a rank of no module": (lora(rank_pattern={"qproj": 2}), ("rank_pattern names 'qproj'", "mean 'q_proj'?")),
    "an alpha by half a name": (lora(alpha_pattern={"proj": 2}), ("alpha_pattern names 'proj'",)),
    "a rank by an expression": (lora(rank_pattern={r"layers\.[2-9]\.self_attn\.q_proj": 2}), ("rank_pattern names",)),
    "a layer beyond the last": (lora(layers_to_transform=[0, 7]), ("names layer 7", "from 0 to 1")),
    "a parameter": (
        lora(target_parameters=["mlp.gate_up.weight"]),
        ("target_parameters names 'mlp.gate_up.weight'", "did you mean 'mlp.gate_proj.weight'?"),
    ),
    "blocks of another type": (
        {"peft_type": "C3A", "block_size": 16, **QV, "block_size_pattern": {"k_proj": 8}},
        ("block_size_pattern names 'k_proj'",),
    ),
    "one of ours": (
        {"peft_type": "KNOWHIRA", "r": 4, "target_modules": ["q_proj", "vproj"]},
        ("target_modules names 'vproj'",),
    ),
}


@pytest.mark.parametrize("case", NOTHING)
def test_a_name_that_matches_nothing(tmp_path: Path, case: str) -> None:
    adapter, says = NOTHING[case]
    text = refused(spec_of(tmp_path, adapter))
    assert "adapter_config.json: " in text and all(one in text for one in says), text


MATCHING: dict[str, dict[str, Any]] = {
    "whole names and their ends": lora(target_modules=["model.layers.0.self_attn.q_proj", "self_attn.v_proj"]),
    "an exclusion that is no target": lora(exclude_modules=["k_proj"]),
    "an exclusion by expression": lora(exclude_modules=r"model\.layers\.0\..*"),
    "a target that is excluded": lora(target_modules=["q_proj", "lm_head"], modules_to_save=["lm_head"]),
    "expressions for ranks": lora(rank_pattern={r"layers\.[01]\.self_attn\.q_proj": 2, "(q|v)_proj": 3}),
    "expressions for all": lora(target_modules="all-linear", rank_pattern={".*": 2}, alpha_pattern={"down_proj": 4}),
    "a layer": lora(layers_to_transform=1, layers_pattern=["layers"]),
    "layers that are made": lora(layer_replication=[[0, 2], [0, 2]], layers_to_transform=[3]),
    "a parameter": lora(target_parameters=["mlp.gate_proj.weight"], rank_pattern={"gate_proj.weight": 2}),
    "more names than peft keeps": lora(
        target_modules=[
            f"model.layers.{layer}.{name}"
            for layer in (0, 1)
            for name in (
                *(f"self_attn.{one}_proj" for one in "qkvo"),
                *(f"mlp.{one}_proj" for one in ("gate", "up", "down")),
                "self_attn.q_proj",
            )
        ]
        + ["lm_head", *(f"layers.{layer}.self_attn.{one}_proj" for layer in (0, 1) for one in "qk")]
    ),
    "virtual tokens": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
}


@pytest.mark.parametrize("case", MATCHING)
def test_a_name_that_matches_something(tmp_path: Path, case: str) -> None:
    assert counting.without_weights(spec_of(tmp_path, MATCHING[case])).trainable()


@pytest.mark.parametrize(
    ("pattern", "rank"),
    [("q_proj", 2), ("proj", 4), (r"layers\.\d\.self_attn\.q_proj", 2), ("k_proj", 4), (".*attn.*", 2)],
)
def test_patterns_match_as_in_peft(tmp_path: Path, pattern: str, rank: int) -> None:
    """A key is refused exactly where peft would leave every rank as it is."""
    model = scoring.load_base(spec_of(tmp_path, lora())).model
    plain = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], rank_pattern={pattern: 2}))
    found = {tensor.shape[0] for name, tensor in plain.named_parameters() if "lora_A" in name}
    assert found == {rank}
    spec = spec_of(tmp_path, lora(target_modules=["q_proj"], rank_pattern={pattern: 2}), name="lora/other")
    if rank == 4:
        assert f"rank_pattern names '{pattern}'" in refused(spec)
    else:
        preflight.check(spec)


@pytest.mark.parametrize("tokens", [[4, 5], {"embed_tokens": [4, 5]}])
@pytest.mark.parametrize("saved", ["embed_tokens", "model.embed_tokens"])
def test_an_embedding_is_trained_once(tmp_path: Path, tokens: Any, saved: str) -> None:
    text = refused(spec_of(tmp_path, lora(modules_to_save=[saved], trainable_token_indices=tokens)))
    assert f"modules_to_save trains all rows of '{saved}'" in text and "leave one of the two out" in text
    preflight.check(spec_of(tmp_path, lora(modules_to_save=["norm"], trainable_token_indices=tokens), name="lora/b"))


# ------------------------------------------------------------------------------------------------------------ float16

HALF: dict[str, tuple[dict[str, Any] | None, dict[str, Any], str]] = {
    "all weights": (None, {}, "all weights would be trained in float16"),
    "an adapter as the base": (lora(), {"autocast_adapter_dtype": False}, "8 tensors, the first is"),
    "weights of the base": ({"peft_type": "LN_TUNING", "target_modules": ["norm"]}, {}, "1 tensors, the first is"),
}


@pytest.mark.parametrize("case", HALF)
def test_nothing_is_trained_in_float16(tmp_path: Path, case: str) -> None:
    adapter, model, says = HALF[case]
    text = refused(spec_of(tmp_path, adapter, model={"dtype": "float16", **model}))
    assert says in text and "model.dtype=bfloat16" in text


@pytest.mark.parametrize(
    ("adapter", "model"), [(lora(), {"dtype": "float16"}), (None, {"dtype": "bfloat16"}), (lora(), {})]
)
def test_an_adapter_on_a_float16_base_is_in_float32(
    tmp_path: Path, adapter: dict[str, Any] | None, model: dict[str, str]
) -> None:
    spec = spec_of(tmp_path, adapter, model=model)
    preflight.check(spec)
    if adapter is not None:
        dtypes = {tensor.dtype for tensor in counting.without_weights(spec).trainable().values()}
        assert dtypes == {torch.float32}


# ------------------------------------------------------------------------------------- modules that chance leaves out


def trained(spec: RunSpec, count: int = 4) -> tuple[Any, list[Any]]:
    ready = preparation.prepare(spec, data.load(spec), scoring.load_base(spec))
    found = []
    for step in training.steps(ready.built, ready.stream, spec, ready.state):
        found.append(step)
        if len(found) == count:
            break
    return ready.built, found


@pytest.mark.parametrize("method", ["LOHA", "LOKR"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_modules_that_are_dropped_by_chance(tmp_path: Path, method: str, share: float) -> None:
    """At 0.95 the first step drops all four modules: it changes nothing, and training goes on."""
    adapter = {"peft_type": method, "r": 4, "alpha": 8, "module_dropout": share, **QV}
    _, steps = trained(spec_of(tmp_path, adapter), 6)
    assert len(steps) == 6
    assert (steps[0].grad_norm == 0) == (share == 0.95)
    assert any(step.grad_norm > 0 for step in steps) or share == 0.95


def test_what_is_in_no_pass_is_refused_beside_dropped_modules(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"peft_type": "LOHA", "r": 4, "alpha": 8, "module_dropout": 0.5, **QV})
    ready = preparation.prepare(spec, data.load(spec), scoring.load_base(spec))
    ready.built.model.register_parameter("astray", torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(UserError, match="1 trainable tensors get no gradient, the first is astray"):
        list(training.steps(ready.built, ready.stream, spec, ready.state))


def test_a_shadow_trains_beside_an_embedding_that_it_does_not_use(tmp_path: Path) -> None:
    """GPT-2 calls its embedding `wte`, which peft leaves in the shadow that shares the base's."""
    built, steps = trained(spec_of(tmp_path, {"peft_type": "SHADOW"}, architecture="gpt2"), 2)
    assert len(steps) == 2
    assert not any("wte" in name for name in built.trainable()) and any("wpe" in name for name in built.trainable())


# --------------------------------------------------------------------------------------------- errors without a trace


def test_configs_inside_a_config_are_shown(tmp_path: Path) -> None:
    text = refused(spec_of(tmp_path, lora(target_modules=["embed_tokens", "q_proj"], kasa_config={"beta": 0.01})))
    assert "peft refuses this adapter for this model" in text


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("prompt.bin", b"\x80\x05N.", "is no .safetensors file; peft would read it as a pickle"),
        ("prompt.safetensors", None, "there is no file"),
        ("prompt.safetensors", b"{}", "is damaged"),
    ],
)
def test_prompts_to_start_from_are_no_pickle(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    start = {"prompt_tuning_init": "ONLY_SOURCE_SHARED", "prompt_tuning_init_state_dict_path": str(path)}
    adapter = {"peft_type": "MULTITASK_PROMPT_TUNING", "num_virtual_tokens": 4, "num_tasks": 1, **start}
    text = refused(spec_of(tmp_path, adapter))
    assert says in text and "prompt_tuning_init_state_dict_path" in text


def test_settings_that_the_first_pass_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("these two do not go together")

    monkeypatch.setattr(training, "forward", refuse)
    with pytest.raises(UserError, match="cannot be trained on this model: these two do not go together"):
        trained(spec_of(tmp_path, lora()))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it works")
def test_a_variant_that_a_quantised_base_does_not_bear_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    """DoRA on int8 on a CPU: bitsandbytes moves a layer's scales in its first pass, and DoRA looks for them."""
    text = refused(spec_of(tmp_path, lora(use_dora=True), quant={"method": "bnb-int8"}))
    assert "this method cannot be trained on such a base" in text and "bnb-nf4" in text
    preflight.check(spec_of(tmp_path, lora(use_dora=True), quant={"method": "bnb-nf4"}, name="lora/nf4"))


# ------------------------------------------------------------------------------------------ linear layers transposed

OTHERS = {"peft_type": "C3A", "block_size": 32, "target_modules": ["c_attn"]}


def test_numbers_of_a_layer_are_no_setting(tmp_path: Path) -> None:
    """`Conv1D(nf=96, nx=32)` is not about `block_size` = 32."""
    text = refused(spec_of(tmp_path, OTHERS, architecture="gpt2"))
    assert "Conv1D" in text and "block_size" not in text and "this method takes no Conv1D" in text


def test_new_says_what_takes_no_transposed_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.save_model(tmp_path / "gpt2", "gpt2")
    task = str(toy.write_task(tmp_path / "task"))
    monkeypatch.chdir(tmp_path)
    for method in ("c3a", "adamss", "knowhira"):
        assert main(["new", method, "mine", "--model", "./gpt2", "--task", task]) == 2
        output = capsys.readouterr().err
        assert f"no config can be written for {method} on this model: it takes no Conv1D" in output
        assert not Path(f"experiments/{method}/mine").exists()
    for method in ("lora", "shadow", "prompt_tuning", "bitfit"):
        assert main(["new", method, "mine", "--model", "./gpt2", "--task", task]) == 0
        assert main(["check", f"experiments/{method}/mine"]) == 0


# ----------------------------------------------------------------------------------------- what the doctor says of it

STATED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "random values": (lora(init_lora_weights=False), "start", "stated", "init_lora_weights: false starts the adapter"),
    "a module beside virtual tokens": (
        {"peft_type": "P_TUNING", "num_virtual_tokens": 4, "encoder_hidden_size": 16, "modules_to_save": ["lm_head"]},
        "disable",
        "stated",
        "base_model.lm_head.modules_to_save",
    ),
    "weights for logits": (
        {"peft_type": "VBLORA", "r": 4, "num_vectors": 32, "vector_length": 16, "save_only_topk_weights": True, **QV},
        "reload",
        "within",
        "saved and loaded onto a fresh base",
    ),
    "dropped modules": (
        {"peft_type": "LOHA", "r": 4, "alpha": 8, "module_dropout": 0.5, **QV},
        "gradients",
        "stated",
        "module_dropout leaves whole modules out of a step",
    ),
    "a module beside layers": (lora(modules_to_save=["lm_head"]), "disable", "exact", "switched off"),
}


@pytest.mark.parametrize("case", STATED)
def test_what_works_as_meant_is_not_broken(tmp_path: Path, case: str) -> None:
    adapter, name, verdict, says = STATED[case]
    trial = examination.trial_of(spec_of(tmp_path, adapter), tmp_path)
    [answer] = examination.examine(trial, {name: examination.EVERYTHING[name]})
    assert (answer.finding.name, answer.finding.verdict) == (name, verdict), answer.finding
    assert says in answer.finding.text
