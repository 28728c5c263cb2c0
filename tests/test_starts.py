"""Starts of adapters: the output before step 1, reloading bit for bit, and the plain form for the base as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import toy
from peftlab.errors import UserError
from peftlab.job import preflight, runs
from peftlab.loop import checkpoint, preparation, training
from peftlab.modelling import bookkeeping, weights
from peftlab.records.store import RunStore
from peftlab.rows import data
from peftlab.scores import scoring
from starts_material import logits, spec_of, trained

RESIDUAL = ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga")
"""Those that move a part of the base's weights into the adapter."""

SAME = {"float32": 2e-5, "bfloat16": 0.25}
"""How far logits (up to about 4) may be off where weights of another rounding give them: two or three last places."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "cache"))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("start", [*RESIDUAL, "eva"])
def test_a_start_begins_at_the_base_and_reloads_bit_for_bit(
    tmp_path: Path, start: str, architecture: str, dtype: str
) -> None:
    done = trained(spec_of(tmp_path, start, architecture=architecture, model={"dtype": dtype}))
    assert distance(done.begun, done.before) <= SAME[dtype]
    assert distance(done.after, done.before) > 2 * SAME[dtype], "it learns"
    changed = start != "eva"
    assert bool(done.built.initial) == changed
    folder = tmp_path / "saved"
    weights.save(done.built, folder)
    loaded = weights.load_trained(done.spec, folder)
    assert torch.equal(logits(loaded.model), done.after)
    here, there = dict(done.built.model.named_parameters()), dict(loaded.model.named_parameters())
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) and here[name].dtype == there[name].dtype for name in here)
    assert weights.share(done.spec, folder, tmp_path / "plain") == changed
    if changed:
        alone = peft.PeftModel.from_pretrained(scoring.load_base(done.spec).model, str(tmp_path / "plain"))
        assert distance(logits(alone), done.after) <= SAME[dtype]
        with alone.disable_adapter():
            assert torch.equal(logits(alone), done.before) or architecture == "bert", "the base is whole"


def test_transposed_layers_begin_at_the_base_too(tmp_path: Path) -> None:
    for start in ("pissa", "corda", "lora_ga"):
        done = trained(spec_of(tmp_path, start, architecture="gpt2"))
        assert distance(done.begun, done.before) <= SAME["float32"]
        weights.save(done.built, tmp_path / start)
        assert torch.equal(logits(weights.load_trained(done.spec, tmp_path / start).model), done.after)
        assert weights.share(done.spec, tmp_path / start, tmp_path / f"{start}-plain")
        alone = peft.PeftModel.from_pretrained(scoring.load_base(done.spec).model, str(tmp_path / f"{start}-plain"))
        assert distance(logits(alone), done.after) <= SAME["float32"]
    with pytest.raises(UserError, match=r"OLoRA does not know layers like .*Conv1D"):
        trained(spec_of(tmp_path, "olora", architecture="gpt2"))


def test_the_plain_form_keeps_patterns_heads_and_magnitudes(tmp_path: Path) -> None:
    adapter = {
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 3},
        "use_dora": True,
        "modules_to_save": ["lm_head"],
        "target_modules": "all-linear",
        "exclude_modules": ["down_proj"],
    }
    done = trained(spec_of(tmp_path, "corda", adapter=adapter))
    weights.save(done.built, tmp_path / "saved")
    assert weights.share(done.spec, tmp_path / "saved", tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 8, False)
    assert (
        config["rank_pattern"]
        == config["alpha_pattern"]
        == {f"model.layers.{layer}.self_attn.v_proj": 4 for layer in (0, 1)}
    )
    alone = peft.PeftModel.from_pretrained(scoring.load_base(done.spec).model, str(tmp_path / "plain"))
    assert distance(logits(alone), done.after) <= SAME["float32"]
    assert torch.equal(logits(weights.load_trained(done.spec, tmp_path / "saved").model), done.after)


@pytest.mark.parametrize("start", ["pissa", "olora", "corda"])
def test_the_plain_form_holds_embeddings_as_they_were_trained(tmp_path: Path, start: str) -> None:
    """peft decomposes no embedding: such an adapter begins at zero, with the rank and the scaling of the config."""
    adapter = {"target_modules": ["q_proj", "embed_tokens"], "rank_pattern": {"embed_tokens": 3}}
    adapter |= {"alpha_pattern": {"embed_tokens": 5}} if start == "corda" else {}
    done = trained(spec_of(tmp_path, start, adapter=adapter))
    weights.save(done.built, tmp_path / "saved")
    assert torch.equal(logits(weights.load_trained(done.spec, tmp_path / "saved").model), done.after)
    assert weights.share(done.spec, tmp_path / "saved", tmp_path / "plain")
    alone = peft.PeftModel.from_pretrained(scoring.load_base(done.spec).model, str(tmp_path / "plain"))
    assert distance(logits(alone), done.after) <= SAME["float32"]
    layer = alone.base_model.model.model.embed_tokens
    assert layer.lora_embedding_A["default"].any() and layer.r["default"] == 3 and layer.scaling["default"] == 1


def test_a_run_keeps_both_forms_and_hands_over_the_plain_one(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "pissa_niter_4", train={"evaluate": "none"})
    spec = spec.model_copy(update={"save": spec.save.model_copy(update={"output_dir": str(tmp_path / "given")})})
    store = RunStore(tmp_path / "results")
    record = runs.run(spec, store)
    folder = store.folder_of(record)
    own = folder / "adapter"
    assert record.cost.adapter_bytes == (own / "adapter_model.safetensors").stat().st_size
    assert (own / "start.safetensors").is_file()
    given, plain = (place / "adapter_model.safetensors" for place in (tmp_path / "given", folder / "plain"))
    assert given.read_bytes() == plain.read_bytes()
    live = logits(weights.load_trained(spec, own).model)
    alone = peft.PeftModel.from_pretrained(scoring.load_base(spec).model, str(tmp_path / "given"))
    assert distance(logits(alone), live) <= SAME["float32"]
    (own / "start.safetensors").unlink()
    with pytest.raises(UserError, match=r"start\.safetensors is missing"):
        weights.load_trained(spec, own)


def test_a_checkpoint_is_not_put_on_another_residual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(tmp_path, "corda")
    rows = data.load(spec)
    ready = preparation.prepare(spec, rows, scoring.load_base(spec))
    next(training.steps(ready.built, ready.stream, spec, ready.state))
    reference = bookkeeping.take_reference(ready.built)
    checkpoint.save(tmp_path / "checkpoints", ready.built, ready.stream, ready.state, reference, keep=1)
    again = preparation.prepare(spec, rows, scoring.load_base(spec))
    assert checkpoint.restore(tmp_path / "checkpoints", again.built, again.stream, again.state) == []
    assert again.state.step == 1
    for path in (tmp_path / "cache").rglob("factors-*.safetensors"):
        save_file({name: 1.001 * tensor for name, tensor in load_file(str(path)).items()}, str(path))
    other = preparation.prepare(spec, rows, scoring.load_base(spec))
    with pytest.raises(UserError, match="started from other values"):
        checkpoint.restore(tmp_path / "checkpoints", other.built, other.stream, other.state)


# ---------------------------------------------------------------------------------------------------------- LoftQ


@pytest.mark.parametrize("bits", [4, 8])
def test_loftq_runs_on_a_cpu_and_makes_up_for_the_rounding(tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    adapter = {"lora_alpha": 4, "use_rslora": False, "target_modules": ["q_proj", "gate_proj"]}
    errors = []
    for rounds in (1, 5):
        options = {"loftq_bits": bits, "loftq_iter": rounds}
        done = trained(spec_of(tmp_path, "loftq", adapter={**adapter, "loftq_config": options}))
        folder = tmp_path / f"saved-{rounds}"
        weights.save(done.built, folder)
        assert torch.equal(logits(weights.load_trained(done.spec, folder).model), done.after)
        assert not weights.share(done.spec, folder, tmp_path / "plain")
        errors.append(_loftq_error(done.spec))
    rounded, once, often = errors[0][0], errors[0][1], errors[1][1]
    assert often < once < rounded


def _loftq_error(spec: Any) -> tuple[float, float]:
    """Mean distance of the rounded weights from the base's, without and with the adapter's first values."""
    base = scoring.load_base(spec)
    originals = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    built = preparation.prepare(spec, data.load(spec), base).built
    without, with_adapter = [], []
    for path, layer in built.model.named_modules():
        if isinstance(layer, peft.tuners.lora.Linear):
            weight = originals[path.removeprefix("base_model.model.") + ".weight"]
            now = layer.get_base_layer().weight.detach()
            without.append(float((weight - now).norm()))
            with_adapter.append(float((weight - now - layer.get_delta_weight("default").detach()).norm()))
    return sum(without), sum(with_adapter)


# --------------------------------------------------------------------------------------------------- prefix from text


@pytest.mark.parametrize("peft_type", ["CARTRIDGE", "PREFIX_TUNING"])
def test_a_prefix_that_begins_as_a_text_acts_like_the_text(tmp_path: Path, peft_type: str) -> None:
    """Keys and values of the text in the cache: what follows is as if the text had been read."""
    text = "12 + 3 = 15"
    adapter = {"peft_type": peft_type, "num_virtual_tokens": len(text)}
    if peft_type == "CARTRIDGE":
        adapter["num_frozen_tokens"] = 0
    spec = _loaded(tmp_path, adapter, model={"kv_prefix_text": text})
    preflight.check(spec)
    base = scoring.load_base(spec)
    ids = torch.tensor([[toy.VOCABULARY[character] for character in text + "1 + 2 ="]])
    base.model.eval()
    with torch.no_grad():
        expected = base.model(input_ids=ids).logits[:, len(text) :]
    built = preparation.prepare(spec, data.load(spec), base).built
    built.model.eval()
    with torch.no_grad():
        found = built.model(input_ids=ids[:, len(text) :]).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    weights.save(built, tmp_path / "saved")
    with torch.no_grad():
        again = weights.load_trained(spec, tmp_path / "saved").model.eval()(input_ids=ids[:, len(text) :]).logits
    assert torch.equal(again, found)


@pytest.mark.parametrize(
    ("adapter", "text", "message"),
    [
        ({"peft_type": "CARTRIDGE", "num_virtual_tokens": 40}, "too short", "Need at least 40 cached tokens"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "text", "PROMPT_TUNING has no key-value prefix"),
        (
            {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "prefix_projection": True},
            "some text",
            "with prefix_projection",
        ),
        (None, "text", "FULL FINE-TUNING has no key-value prefix"),
    ],
)
def test_prefixes_that_cannot_begin_as_a_text(
    tmp_path: Path, adapter: dict[str, Any] | None, text: str, message: str
) -> None:
    spec = _loaded(tmp_path, adapter, model={"kv_prefix_text": text}, train={"evaluate": "none"})
    with pytest.raises(UserError, match=message):
        runs.run(spec, RunStore(tmp_path / "results"))


def _loaded(root: Path, adapter: dict[str, Any] | None, **groups: Any) -> Any:
    from peftlab.config import loading

    return loading.load(toy.write_experiment(root, adapter=adapter, **groups))


# ----------------------------------------------------------------------------------------------------------- refusals


LOFTQ = {"lora_alpha": 4, "use_rslora": False, "loftq_config": {"loftq_bits": 8}}


def test_what_loftq_leaves_open_is_as_peft_has_it(tmp_path: Path) -> None:
    said = trained(spec_of(tmp_path, "loftq", adapter={**LOFTQ, "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}))
    open_ = trained(spec_of(tmp_path, "loftq", adapter={**LOFTQ, "loftq_config": {"loftq_bits": 4}}))
    assert torch.equal(said.begun, open_.begun)


@pytest.mark.parametrize("start", [*RESIDUAL, "loftq"])
def test_a_shared_weight_is_not_changed_for_two_modules(tmp_path: Path, start: str) -> None:
    """The toy's output layer is its embedding: taken apart, the embedding would be wrong."""
    more = LOFTQ if start == "loftq" else {}
    spec = spec_of(tmp_path, start, adapter={"target_modules": ["lm_head"], **more})
    with pytest.raises(UserError, match="lm_head shares its weight with another module"):
        trained(spec)


@pytest.mark.parametrize("start", ["pissa", "loftq"])
def test_replicated_layers_share_their_weights(tmp_path: Path, start: str) -> None:
    more = LOFTQ if start == "loftq" else {}
    spec = spec_of(tmp_path, start, adapter={"layer_replication": [[0, 2], [0, 2]], **more})
    with pytest.raises(UserError, match="layer_replication shares weights"):
        trained(spec)


def test_the_files_of_the_start_are_no_pickles(tmp_path: Path) -> None:
    trained(spec_of(tmp_path, "corda"))
    kept = sorted(path.name.split("-")[0] for path in (tmp_path / "cache").rglob("*.safetensors"))
    assert kept == ["covariance", "factors"]
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        assert load_file(str(path))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".pt", ".bin", ".pth")]
