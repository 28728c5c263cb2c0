"""Loading: precisions, attention, added tokens, several stop tokens, and counts without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import toy
from peftlab.config import loading
from peftlab.errors import UserError
from peftlab.job import runs
from peftlab.modelling import adapting, counting, models
from peftlab.records.store import RunStore


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_trains_with_float32_adapters(tmp_path: Path, dtype: str) -> None:
    folder = toy.write_experiment(tmp_path, model={"dtype": dtype}, train={"max_steps": 8})
    resolved = loading.load(folder)
    built = adapting.adapt(models.load(resolved.model, "causal"), resolved)
    assert {parameter.dtype for parameter in built.trainable().values()} == {torch.float32}
    kept = loading.load(folder, overrides={"model.autocast_adapter_dtype": False})
    if dtype == "float16":  # too small a range for an optimizer's steps
        with pytest.raises(UserError, match="would be trained in float16"):
            adapting.adapt(models.load(kept.model, "causal"), kept)
    else:
        plain = adapting.adapt(models.load(kept.model, "causal"), kept)
        assert {str(parameter.dtype) for parameter in plain.trainable().values()} == {f"torch.{dtype}"}
    record = runs.run(resolved, RunStore(tmp_path / "results"))
    assert record.curve["loss"][-1] < record.curve["loss"][0]


def test_attention_implementations_agree(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    losses = []
    for name in ("sdpa", "eager"):
        resolved = loading.load(folder, overrides={"model.attn_implementation": name, "train.evaluate": "none"})
        assert models.load(resolved.model, "causal").model.config._attn_implementation == name
        losses.append(runs.run(resolved, RunStore(tmp_path / name)).curve["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_added_tokens_get_rows_that_depend_on_no_seed(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    resolved = loading.load(folder)
    tokenizer = AutoTokenizer.from_pretrained(resolved.model.id)
    tokenizer.add_tokens(["<tool>", "<answer>"])
    tokenizer.save_pretrained(resolved.model.id)
    resolved = loading.load(folder)
    first, second = (models.load(resolved.model, "causal", seed=seed) for seed in (0, 1))
    rows = first.model.get_input_embeddings().weight
    assert first.facts["added_token_rows"] == 2 and rows.shape[0] == toy.SIZE + 2
    assert torch.equal(rows, second.model.get_input_embeddings().weight)
    assert torch.allclose(rows[-1], rows[: toy.SIZE].mean(dim=0))
    assert runs.run(resolved, RunStore(tmp_path / "results")).status == "finished"


def test_a_new_head_starts_from_the_seed(tmp_path: Path) -> None:
    settings = loading.load(toy.write_experiment(tmp_path)).model
    one, same, other = (
        models.load(settings, "classify", labels=("a", "b"), seed=seed).model.score.weight for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


ADAPTERS: dict[str, dict[str, Any] | None] = {
    "lora": toy.LORA,
    "ia3": {"peft_type": "IA3", "target_modules": ["v_proj"], "feedforward_modules": []},
    "prompt": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
    "full": None,
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_counts_on_the_meta_device_are_those_of_the_real_model(tmp_path: Path, name: str) -> None:
    resolved = loading.load(toy.write_experiment(tmp_path, adapter=ADAPTERS[name]))
    counts = counting.count_parameters(resolved)
    built = adapting.adapt(models.load(resolved.model, "causal"), resolved)
    assert counts.source == "meta"
    assert counts.trainable == sum(parameter.numel() for parameter in built.trainable().values())
    assert counts.total == sum(parameter.numel() for parameter in built.model.parameters())
    assert (counts.trainable == counts.total) is (name == "full")


def test_a_model_that_is_not_here_is_not_computable(tmp_path: Path) -> None:
    resolved = loading.load(toy.write_experiment(tmp_path), overrides={"model.id": "org/absent"})
    counts = counting.count_parameters(resolved)
    assert (counts.trainable, counts.source) == (None, None) and "org/absent" in (counts.reason or "")
