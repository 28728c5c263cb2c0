"""What peft gets wrong, or refuses too late, and what is done about it; each case is one that was silently wrong."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from peftlab.cli import main
from peftlab.config import loading
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.invariants import afterwards, examination, learning
from peftlab.invariants.trial import Trial
from peftlab.loop import preparation, training
from peftlab.modelling import merging, models, weights
from peftlab.modelling.adapting import quiet_peft
from peftlab.protocols import Method
from peftlab.rows import data
from peftlab.scores import evaluation

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
methods: Any = importlib.import_module("methods")


def spec_of(root: Path, adapter: dict[str, Any], **more: Any) -> RunSpec:
    return loading.load(toy.write_experiment(root, adapter=adapter, **more))


def built_of(spec: RunSpec) -> models.Built:
    base = models.load(spec.model, models.kind_of(spec), labels=spec.task.labels, quant=spec.quant)
    return preparation.prepare(spec, data.load(spec), base).built


def test_peft_does_not_change_the_declared_config(tmp_path: Path) -> None:
    """It adds the classifier to `modules_to_save` in place, which would change the run's key."""
    adapter = {**toy.LORA, "target_modules": ["query", "value"], "modules_to_save": ["LayerNorm"]}
    spec = spec_of(tmp_path, adapter, architecture="bert")
    before, key = copy.deepcopy(spec.adapter), spec.train_key
    built_of(spec)
    assert spec.adapter == before and spec.train_key == key


def test_what_a_method_keeps_frozen_stays_so_on_a_bfloat16_base(tmp_path: Path) -> None:
    """peft's move to the base's precision makes AdaLoRA's count of ranks trainable, and no file holds it."""
    adapter = {
        "peft_type": "ADALORA",
        "target_modules": ["q_proj"],
        "init_r": 4,
        "target_r": 2,
        "tinit": 1,
        "tfinal": 1,
    }
    names = []
    for dtype in ("float32", "bfloat16"):
        built = built_of(spec_of(tmp_path / dtype, adapter, model={"dtype": dtype}))
        names.append(set(built.trainable()))
        assert {parameter.dtype for parameter in built.trainable().values()} == {torch.float32}
    assert names[0] == names[1] and not any("ranknum" in name for name in names[1])
    half = {"dtype": "bfloat16", "autocast_adapter_dtype": False}
    built = built_of(spec_of(tmp_path / "half", adapter, model=half))
    assert {parameter.dtype for parameter in built.trainable().values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranks_that_an_allocation_took_and_training_gave_back_are_saved(tmp_path: Path, dtype: str) -> None:
    """AdaLoRA allocates at step 2; at step 3 the others are no longer zero, and peft's own save leaves them out."""
    options = {"init_r": 8, "target_r": 1, "tinit": 1, "tfinal": 1, "deltaT": 2, "total_step": 6}
    adapter = {"peft_type": "ADALORA", "target_modules": toy.LINEARS["llama"], **options}
    optim = {"learning_rate": 1e-2, "warmup_steps": 0}
    trial = examination.trial_of(spec_of(tmp_path, adapter, model={"dtype": dtype}, optim=optim), tmp_path / "trial")
    assert afterwards.reload(trial).verdict == afterwards.plain_peft(trial).verdict == "exact"
    ready = trial.prepare()
    for step in training.steps(ready.built, ready.stream, trial.spec, ready.state):
        if step.step == 3:
            break
    logits = trial.logits(ready.built)
    assert torch.equal(logits, trial.course.logits)
    left = ready.built.adapter.rank_pattern
    weights.save(ready.built, tmp_path / "ours")
    assert ready.built.adapter.rank_pattern is left and 0 < sum(map(sum, left.values())) < 8 * len(left)
    with quiet_peft():
        ready.built.model.save_pretrained(str(tmp_path / "theirs"))
    ours, theirs = (trial.logits(weights.load_trained(trial.spec, tmp_path / one)) for one in ("ours", "theirs"))
    assert torch.equal(ours, logits) and not torch.allclose(theirs, logits, atol=1e-4)


def test_a_layer_that_lost_all_its_ranks_is_no_fault(tmp_path: Path) -> None:
    """Its singular values get a gradient in every step, and every allocation puts them back to zero."""
    options = {"init_r": 8, "target_r": 1, "tinit": 1, "tfinal": 1, "deltaT": 1, "total_step": 6}
    adapter = {"peft_type": "ADALORA", "target_modules": toy.LINEARS["llama"], **options}
    optim = {"learning_rate": 1e-2, "warmup_steps": 0}
    trial = examination.trial_of(spec_of(tmp_path, adapter, optim=optim), tmp_path / "trial")
    finding = learning.gradients(trial)
    assert finding.verdict == "stated" and "lost all its ranks" in finding.text
    course = trial.course
    still = [name for name in course.start if torch.equal(course.start[name], course.middle[name])]
    assert still and all("lora_E" in name and not course.middle[name].any() for name in still)
    assert all({1, 2, 3} <= course.gradients[name][1] for name in still)
    others = {name: (set(), set()) if "lora_A" in name else found for name, found in course.gradients.items()}
    trial.course = dataclasses.replace(course, gradients=others)
    assert learning.gradients(trial).verdict == "broken"


REFUSE_CHECKPOINTING: dict[str, dict[str, Any]] = {
    "prefix": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
    "cartridge": {"peft_type": "CARTRIDGE", "num_virtual_tokens": 4},
    "poly": {"peft_type": "POLY", "target_modules": ["q_proj", "v_proj"]},
    "monteclora": {**toy.LORA, "monteclora_config": {"num_samples": 4}},
    "two variants": {**toy.LORA, "monteclora_config": {"num_samples": 4}, "use_rslora": True},
}


@pytest.mark.parametrize("name", REFUSE_CHECKPOINTING)
def test_gradient_checkpointing_is_refused_before_training(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = toy.write_experiment(tmp_path, adapter=REFUSE_CHECKPOINTING[name])
    results = ["--results", str(tmp_path / "results")]
    assert main(["run", str(folder), "model.gradient_checkpointing=true", *results]) == 2
    assert "gradient" in capsys.readouterr().err


@pytest.mark.parametrize(("types", "said"), [([2, 2, 2], "nan"), ([4, 4, 4], "nothing would be trained")])
def test_token_types_that_cannot_work_are_refused(tmp_path: Path, types: list[int], said: str) -> None:
    """peft's mean over no label is nan, and its hook gives answers a gradient of zero."""
    adapter = {"peft_type": "CPT", "cpt_token_ids": [20, 21, 22], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": types}
    with pytest.raises(UserError, match=said):
        built_of(spec_of(tmp_path, adapter))


def test_a_projected_context_is_projected_once(tmp_path: Path) -> None:
    """After a step, peft's own projection in the forward pass changes no bit."""
    adapter = {"peft_type": "CPT", "cpt_token_ids": [20, 21, 22], "cpt_mask": [1, 1, 1]}
    spec = spec_of(
        tmp_path, {**adapter, "cpt_tokens_type_mask": [2, 2, 4]}, optim={"learning_rate": 0.1, "warmup_steps": 0}
    )
    base = models.load(spec.model, "causal")
    ready = preparation.prepare(spec, data.load(spec), base)
    next(training.steps(ready.built, ready.stream, spec, ready.state))
    encoder = ready.built.model.prompt_encoder["default"]
    assert encoder.delta_embedding.weight.abs().max() > 0
    assert torch.equal(encoder.get_projection(), encoder.delta_embedding.weight)


def test_a_mixture_comes_back_without_its_experts_folders(tmp_path: Path) -> None:
    """Every tensor of classifier and experts is in the saved folder, two layers deep too."""
    folder = tmp_path / "row"
    found = {"adapters": methods.experts("tiny-llama", folder), "hidden_size": 32, "xlora_depth": 2, "xlora_size": 8}
    adapter = {"peft_type": "XLORA", **found}
    experiment = toy.write_experiment(tmp_path / "x", adapter=adapter)
    shutil.rmtree(tmp_path / "x" / "model-llama")
    shutil.copytree(tmp_path / "tiny-llama", tmp_path / "x" / "model-llama")
    trial = examination.trial_of(loading.load(experiment), tmp_path / "trial")
    logits = trial.course.logits
    shutil.rmtree(folder)
    again = trial.load()
    assert torch.equal(trial.logits(again), logits)
    with pytest.raises(UserError, match="cannot be merged"):  # its weights depend on the row
        merging.merge(again)
    config = json.loads((trial.saved / "adapter_config.json").read_text())
    assert all((trial.saved / path).is_dir() for path in config["adapters"].values())


def test_experts_must_be_there(tmp_path: Path) -> None:
    adapter = {"peft_type": "XLORA", "hidden_size": 32, "adapters": {"0": str(tmp_path / "nothing")}}
    with pytest.raises(UserError, match="no saved adapter"):
        built_of(spec_of(tmp_path, adapter))


def test_rows_are_scored_one_at_a_time_where_the_method_mixes_them(tmp_path: Path) -> None:
    """peft's Lily averages its routing over the batch: with batches of five the texts would be others."""
    spec = spec_of(tmp_path, {"peft_type": "LILY", "r": 4, "target_modules": ["q_proj", "v_proj"]})
    built = built_of(spec)
    with torch.no_grad():  # as after a long training
        for name, value in built.trainable().items():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    rows = data.load(spec).test

    def texts(size: int, own_rule: bool = True) -> list[Any]:
        changed = spec.model_copy(update={"batch": spec.batch.model_copy(update={"per_device_eval_batch_size": size})})
        scored = built if own_rule else dataclasses.replace(built, method=Method())
        return [sample["prediction"] for sample in toy.drained(evaluation.score(scored, rows, changed)).samples]

    assert texts(5) == texts(1)
    assert texts(5, own_rule=False) != texts(1)


def test_weights_that_are_tied_are_not_merged_into_something_else(tmp_path: Path) -> None:
    """peft adds the update to the shared embedding twice, and says nothing."""
    adapter = {**toy.LORA, "target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    trial = examination.trial_of(spec_of(tmp_path, adapter), tmp_path / "trial")
    assert (trial.saved / "adapter_config.json").is_file()
    with pytest.raises(UserError, match="another output"):
        merging.merge(trial.load())


def test_the_auxiliary_loss_is_trained_and_told_apart(tmp_path: Path) -> None:
    """What the labelled loss has beyond the task's is peft's auxiliary loss times its weight."""
    spec = spec_of(tmp_path, {"peft_type": "SHADOW", "r": 4, "auxiliary_loss_weight": 0.5})
    trial = examination.trial_of(spec, tmp_path / "trial")
    built = trial.prepare().built
    frozen = [
        name for name, value in built.model.named_parameters() if "shadow_update" in name and not value.requires_grad
    ]
    assert frozen and all(".layers.1." in name for name in frozen)
    batch = trial.batch(built)
    built.model.train()
    training.forward(built, batch, labelled=True)
    expected = 0.5 * float(built.model.base_model.shadow_auxiliary_loss(batch.labels).detach())
    assert trial.course.steps[0].method_loss == pytest.approx(expected, rel=1e-5)


def _quantised(root: Path, adapter: dict[str, Any]) -> Trial:
    pytest.importorskip("bitsandbytes")
    return examination.trial_of(spec_of(root, adapter, quant={"method": "bnb-nf4"}), root / "trial")


def test_a_method_that_cannot_work_on_few_bits_is_refused_before_training(tmp_path: Path) -> None:
    adapter = {"peft_type": "LOHA", "r": 4, "target_modules": ["q_proj", "v_proj"]}
    with pytest.raises(UserError, match="cannot be trained on such a base"):
        _ = _quantised(tmp_path, adapter).first


def test_a_base_that_gives_no_gradient_is_an_error(tmp_path: Path) -> None:
    """peft's Uni-LoRA layer for 4 bits leaves its vector without a part in the output."""
    adapter = {"peft_type": "UNILORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}
    with pytest.raises(UserError, match="exactly zero"):
        _ = _quantised(tmp_path, adapter).course
