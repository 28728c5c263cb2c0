"""Adapters that cannot be: exit code 2, file, key and value named, a way out, and nothing trained or left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import toy
from refusals import Place

QV = {"target_modules": ["q_proj", "v_proj"]}
LINEAR = "linear layers of this model: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"


def peft(method: str, **values: Any) -> dict[str, Any]:
    return {"peft_type": method, **values}


def lora(**values: Any) -> dict[str, Any]:
    return {**toy.LORA, **values}


CONFIGS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "an unknown type": (peft("LORRA"), ("unknown peft_type 'LORRA'", "did you mean 'LORA'?")),
    "a type like nothing": (peft("QUUX"), ("unknown peft_type 'QUUX'", "use one of: ADALORA", "BITFIT", "KNOWHIRA")),
    "no type": ({"r": 4}, ("'peft_type' is required", '"peft_type": "LORA"')),
    "a number as type": (peft(3), ("'peft_type' is required",)),  # type: ignore[arg-type]
    "a list": ([1], ("holds a list, not an object",)),
    "another task type": (lora(task_type="SEQ_CLS"), ("task_type is SEQ_CLS, but the task needs CAUSAL_LM",)),
    "a task type for one of ours": (peft("KNOWHIRA", task_type="SEQ_CLS"), ("but the task needs CAUSAL_LM",)),
    # numbers
    "rank zero": (lora(r=0), ("`r` should be a positive integer", "mend 'r' (= 0)")),
    "rank below zero": (lora(r=-4), ("`r` should be a positive integer", "mend 'r' (= -4)")),
    "rank as text": (lora(r="8"), ("mend 'r' (= \"8\", by default 8)",)),
    "rank and a half": (lora(r=4.5), ("mend 'r' (= 4.5, by default 8)",)),
    "a rank above the width": (peft("MISS", r=64, **QV), ("`r` (64) must be less than", "in_features (32)")),
    "alpha as text": (lora(lora_alpha="16"), ("mend 'lora_alpha' (= \"16\", by default 8)",)),
    "dropout above one": (lora(lora_dropout=2.0), ("dropout probability", "mend 'lora_dropout' (= 2.0)")),
    "a block that does not divide": (peft("C3A", **QV), ("block size is 256", "mend 'block_size' (= 256)")),
    "vectors that do not divide": (peft("VBLORA", **QV), ("`vector_length` 256", "mend 'vector_length' (= 256)")),
    "more frequencies than numbers": (
        peft("FOURIERFT", n_frequency=100_000, **QV),
        ("the product is 1024", "mend 'n_frequency' (= 100000)"),
    ),
    "more layers than there are": (
        peft("ADAPTION_PROMPT", adapter_len=4, adapter_layers=9),
        ("more adapter layers '9' than the model has '2'", "mend 'adapter_layers' (= 9)"),
    ),
    "a layer that is not there": (lora(layers_to_transform=[99]), ("'layers_to_transform' (= [99])",)),
    "a schedule that leaves no steps": (
        peft("ADALORA", tinit=5, tfinal=5, **QV),
        ("don't allow for a budgeting phase", "total_step is the budget, 2 steps here"),
    ),
    "a schedule longer than its own total": (
        peft("ADALORA", tinit=2, tfinal=2, total_step=3, **QV),
        ("don't allow for a budgeting phase",),
    ),
    # keys
    "a key of none": (lora(lora_rank=8), ("LORA has no setting 'lora_rank' (= 8)", "did you mean")),
    "a key of none with zero": (lora(lora_rank=0), ("LORA has no setting 'lora_rank' (= 0)", "did you mean")),
    "text for a switch": (lora(use_dora="yes"), ("true or false for 'use_dora', not \"yes\"",)),
    "an unknown start": (lora(init_lora_weights="kaimin"), ("'init_lora_weights' (= \"kaimin\")",)),
    "an unknown kind of bias": (lora(bias="some"), ("Requested bias: some", "mend 'bias' (= \"some\")")),
    "two sizes for one thing": (peft("OFT", r=4, oft_block_size=8, **QV), ("either r (4) or oft_block_size (8)",)),
    "required numbers left out": (
        peft("ADAPTION_PROMPT"),
        ("give 'adapter_len' and 'adapter_layers', for which there is no default",),
    ),
    "no virtual tokens": (peft("PROMPT_TUNING"), ("give 'num_virtual_tokens', for which there is no default",)),
    "masks of another length": (
        peft("CPT", cpt_token_ids=[1, 2, 3], cpt_mask=[1, 1]),
        ("cpt_mask and cpt_tokens_type_mask must have the same length",),
    ),
    "a prompt of no task": (
        peft("MULTITASK_PROMPT_TUNING", num_virtual_tokens=4, num_tasks=0),
        ("is to be trained, and holds nothing",),
    ),
    "no experts to mix": (peft("XLORA"), ("X-LoRA mixes trained adapters, and the config names none",)),
    # targets
    "targets of another model": (lora(target_modules=["query"]), ("Target modules {'query'} not found", LINEAR)),
    "targets that are no expression": (lora(target_modules="("), ("unterminated", "mend 'target_modules' (= '(')")),
    "feed-forward modules beside the targets": (
        peft("IA3", feedforward_modules=["down_proj"], **QV),
        ("`feedforward_modules` should be a subset of `target_modules`",),
    ),
    "feed-forward modules left to peft": (
        peft("IA3", **QV),
        ("`feedforward_modules` should be a subset", 'peft fills in ["down_proj"]', "[] for none"),
    ),
    "a module to save that is not there": (
        lora(modules_to_save=["lm_heat"]),
        ("modules_to_save names 'lm_heat'", "did you mean 'lm_head'?"),
    ),
    "no tokens to train": (peft("TRAINABLE_TOKENS"), ("is to be trained, and holds nothing", "lists of tokens")),
    # ours
    "no bias to train": (peft("BITFIT"), ("BitFit trains biases, and none of this model's 20 tensors is one",)),
    "ours with text for a number": (peft("KNOWHIRA", r="4"), ("'r' = \"4\": Input should be a valid integer",)),
    "ours with rank zero": (peft("KNOWHIRA", r=0), ("'r' = 0: Input should be greater than 0",)),
    "ours with too large a share": (peft("KNOWHIRA", svd_rank_ratio=2.0), ("'svd_rank_ratio' = 2.0",)),
    "ours with a key of none": (
        peft("KNOWHIRA", knowledge_alfa=0.5),
        ("KNOWHIRA has no setting 'knowledge_alfa' (= 0.5)", "did you mean 'knowledge_alpha'?"),
    ),
    "ours on an embedding": (
        peft("KNOWHIRA", target_modules=["embed_tokens"]),
        ("matches model.embed_tokens (Embedding); it needs linear layers",),
    ),
    "ours on nothing": (peft("KNOWHIRA", target_modules=["query"]), ("matches no layer of this model", LINEAR)),
    "ours with targets that are no expression": (
        peft("KNOWHIRA", target_modules="("),
        ("unterminated", "mend 'target_modules' (= '(')"),
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_cannot_be(place: Place, case: str) -> None:
    adapter, says = CONFIGS[case]
    folder = place.experiment(name="method/bad", adapter=adapter)
    place.refuses("run", folder, says=("adapter_config.json", *says))


def test_a_schedule_is_held_against_a_budget_that_has_to_be_counted(place: Place) -> None:
    """40 rows in batches of 4 make 10 steps; the starting model is not scored first."""
    adapter = peft("ADALORA", tinit=6, tfinal=6, **QV)
    folder = place.experiment(adapter=adapter, train={"max_steps": None, "num_train_epochs": 1})
    text = place.refuses("run", folder, says=("budgeting phase", "total_step is the budget, 10 steps here"))
    assert "toy test" not in text


@pytest.mark.parametrize("wrong", [5000, -1])
def test_a_token_that_the_model_does_not_have(place: Place, wrong: int) -> None:
    """Shapes do not show it, so that the vocabulary is looked at; the starting model is not scored first."""
    folder = place.experiment(adapter=peft("TRAINABLE_TOKENS", token_indices=[5, wrong]))
    place.refuses(
        "run", folder, says=("adapter_config.json", f"token {wrong}", f"mend 'token_indices' (= [5, {wrong}])")
    )
    folder = place.experiment(
        name="method/other", adapter=peft("LORA", trainable_token_indices={"embed_tokens": [wrong]}, **QV)
    )
    place.refuses("run", folder, says=(f"trainable_token_indices names token {wrong}",))


def test_biases_of_modules_that_have_none(place: Place) -> None:
    model = toy.save_model(place.root / "bert", "bert")
    task = toy.write_task(place.root / "labels", kind="classify")
    adapter = peft("BITFIT", target_modules=["keys"])
    folder = place.experiment(adapter=adapter, model={"id": str(model)}, task=task)
    place.refuses("run", folder, says=("target_modules = ['keys'] names no module with a bias", "key, query, value"))


# ------------------------------------------------------------------------------------------------- weights of a run


@pytest.fixture
def trained(place: Place) -> tuple[Place, Path, Path]:
    """A finished run, its experiment and the folder of its adapter."""
    folder = place.experiment()
    place.runs("run", folder)
    adapter = place.record().with_suffix("") / "adapter"
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    return place, folder, adapter


AGAIN = ("evaluate", "lora/toy", "batch.per_device_eval_batch_size=3")


def test_weights_that_are_gone(trained: tuple[Place, Path, Path]) -> None:
    place, _, adapter = trained
    (adapter / "adapter_model.safetensors").unlink()
    place.refuses(*AGAIN, says=("are not those that the training wrote",))


def test_a_pickle_in_their_place(trained: tuple[Place, Path, Path]) -> None:
    place, _, adapter = trained
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    place.refuses(*AGAIN, says=("are not those that the training wrote",))


def test_weights_of_another_run(trained: tuple[Place, Path, Path]) -> None:
    place, _, adapter = trained
    before = place.record()
    place.runs("run", place.experiment(name="lora/other", adapter=lora(r=2)), "--results", "elsewhere")
    [other] = Path().glob("*elsewhere/*/adapter")
    shutil.copyfile(other / "adapter_model.safetensors", adapter / "adapter_model.safetensors")
    place.refuses(*AGAIN, says=("are not those that the training wrote",))
    assert place.record() == before


def test_a_saved_adapter_of_no_run_is_no_model(trained: tuple[Place, Path, Path]) -> None:
    """It says itself what it belongs on, here a base that cannot be had."""
    place, _, adapter = trained
    shutil.copytree(adapter, "received")
    config = json.loads(Path("received/adapter_config.json").read_text())
    Path("received/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/other"}))
    place.refuses("evaluate", "received", says=("which task should", "--task NAME"))
    place.refuses("evaluate", "received", "--task", "task/toy.yaml", says=("'org/other'", "use a local folder"))
