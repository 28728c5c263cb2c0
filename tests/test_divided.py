"""Weights, gradients and optimizer state divided over processes (ZeRO, FSDP2): the run of one process all the same.

Two gloo processes on a CPU. What needs DeepSpeed is skipped where it is not installed; its first start compiles an
operator for about a minute.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from comparing import curve, outcome, predictions, record_file, trained
from fork_runner import Runner
from peftlab.config import loading
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.loop import checkpoint, training
from peftlab.modelling import adapting, models
from peftlab.parallel import starting, zero
from peftlab.parallel.split import require_elementwise, require_precision, without_hooks
from peftlab.records.store import RunStore
from peftlab.rows.batching import Stream
from peftlab.rows.tokenise import TokenRow

ONE = {"batch.per_device_train_batch_size": 2, "batch.gradient_accumulation_steps": 4}
TWO = {"batch.per_device_train_batch_size": 2, "batch.gradient_accumulation_steps": 2}
STILL = {**toy.LORA, "lora_dropout": 0.0}

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
WAYS = ["fsdp2", *(pytest.param(way, marks=needs_deepspeed) for way in ("zero-2", "zero-3"))]

CASES: dict[str, dict[str, Any]] = {
    "lora": {"adapter": STILL},
    "full": {"adapter": None},
    # its weights lie in modules without a forward of their own
    "ia3": {
        "adapter": {
            "peft_type": "IA3",
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
        }
    },
    "classifier": {"architecture": "bert", "adapter": {**STILL, "target_modules": ["query", "value"]}},
}


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    running = Runner({"DS_ACCELERATOR": "cpu"})
    yield running
    running.close()


def divided(way: str, folder: Path) -> dict[str, Any]:
    """The settings that ask for it."""
    if way == "fsdp2":
        return {**TWO, "launch.sharding": "fsdp2"}
    return {**TWO, "launch.deepspeed": str(config(folder, {"zero_optimization": {"stage": int(way[-1])}}))}


def config(folder: Path, content: Any) -> Path:
    path = folder / "deepspeed.json"
    path.write_text(json.dumps(content))
    return path


# ------------------------------------------------------------------------------------------------- whole launches


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_divided_over_two_processes_it_is_the_run_of_one(runner: Runner, tmp_path: Path, case: str, way: str) -> None:
    """42 rows in steps of 8: at the end of a pass the second process has no rows. Validated live after step 4."""
    kind = "classify" if case == "classifier" else "generate"
    task = toy.write_task(tmp_path / "task", kind=kind, train=42)
    folder = toy.write_experiment(tmp_path, task=task, train={"max_steps": 8, "eval_steps": 4}, **CASES[case])
    assert runner.run(folder, tmp_path / "one", overrides=ONE) == 0
    assert runner.launch(2, folder, tmp_path / "two", overrides=divided(way, tmp_path)) == [0, 0]
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    for figure in ("loss", "grad_norm"):
        assert [row[figure] for row in two] == pytest.approx([row[figure] for row in one], rel=1e-5)
    first, second = trained(tmp_path / "one"), trained(tmp_path / "two")
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5
    assert predictions(tmp_path / "one") == predictions(tmp_path / "two") != []
    records = [json.loads(record_file(tmp_path / name).read_text()) for name in ("one", "two")]
    for count in ("num_trainable_parameters", "num_parameters"):
        assert records[0]["cost"][count] == records[1]["cost"][count] > 0


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_and_resumed_it_ends_with_the_same_bytes(runner: Runner, tmp_path: Path, way: str, victim: int) -> None:
    folder = toy.write_experiment(tmp_path, train={"max_steps": 8, "eval_steps": 4}, save={"save_steps": 2})
    asked = divided(way, tmp_path)
    assert runner.launch(2, folder, tmp_path / "whole", overrides=asked) == [0, 0]
    codes = runner.launch(2, folder, tmp_path / "results", overrides=asked, kill="step", count=6, victim=victim)
    assert codes[victim] == -9 and codes[1 - victim] == 2
    (record,) = RunStore(tmp_path / "results").records()
    assert record.status == ("killed" if victim == 0 else "failed")
    assert victim == 0 or "another process" in str(record.error)
    parts = sorted(path.name for path in tmp_path.rglob("checkpoints/step-000004/*"))
    assert parts == ["part-0000.safetensors", "part-0001.safetensors", "state.json", "tensors.safetensors"]
    if victim == 1:  # a part that is not what was written: the checkpoint before it counts
        (part,) = tmp_path.rglob("checkpoints/step-000004/part-0001.safetensors")
        part.write_bytes(part.read_bytes()[:-1] + b"\x7f")
    assert runner.launch(2, folder, tmp_path / "results", overrides=asked) == [0, 0]
    assert outcome(tmp_path / "results") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_part_without_gradients_is_no_error(runner: Runner, tmp_path: Path) -> None:
    """Of this method only gates of one number have gradients in the first step, and one process has none of them."""
    adapter = {"peft_type": "ADAPTION_PROMPT", "adapter_len": 4, "adapter_layers": 1}
    folder = toy.write_experiment(tmp_path, adapter=adapter, train={"max_steps": 3, "evaluate": "none"})
    assert runner.run(folder, tmp_path / "one", overrides=ONE) == 0
    assert runner.launch(2, folder, tmp_path / "two", overrides=divided("fsdp2", tmp_path)) == [0, 0]
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert [row["grad_norm"] for row in two] == pytest.approx([row["grad_norm"] for row in one], rel=1e-5)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_state_that_lies_in_the_memory_of_the_cpu(runner: Runner, tmp_path: Path, stage: int) -> None:
    folder = toy.write_experiment(tmp_path, adapter=STILL, train={"max_steps": 4, "evaluate": "none"})
    asked = {"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}}}
    overrides = {**TWO, "launch.deepspeed": str(config(tmp_path, asked))}
    assert runner.run(folder, tmp_path / "one", overrides=ONE) == 0
    assert runner.launch(2, folder, tmp_path / "two", overrides=overrides) == [0, 0]
    first, second = trained(tmp_path / "one"), trained(tmp_path / "two")
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5


@pytest.mark.slow
def test_killed_while_it_writes_a_part(runner: Runner, tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, train={"max_steps": 6}, save={"save_steps": 2})
    asked = divided("fsdp2", tmp_path)
    assert runner.launch(2, folder, tmp_path / "whole", overrides=asked) == [0, 0]
    codes = runner.launch(2, folder, tmp_path / "results", overrides=asked, kill="checkpoint", count=2, victim=1)
    assert codes == [2, -9]
    assert runner.launch(2, folder, tmp_path / "results", overrides=asked) == [0, 0]
    assert outcome(tmp_path / "results") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_checkpoint_is_read_as_it_was_written(runner: Runner, tmp_path: Path) -> None:
    """Not by a launch that divides in another way; a process more or less is another run anyway."""
    folder = toy.write_experiment(tmp_path, train={"max_steps": 6}, save={"save_steps": 2})
    asked = divided("fsdp2", tmp_path)
    assert -9 in runner.launch(2, folder, tmp_path / "results", overrides=asked, kill="step", count=4, victim=1)
    assert runner.launch(2, folder, tmp_path / "results", overrides=TWO) == [2, 2]
    spec = resolved(folder, **{key.replace(".", "__"): value for key, value in TWO.items()})
    built = adapting.adapt(models.load(spec.model, "causal"), spec)
    (checkpoints,) = tmp_path.rglob("checkpoints")
    stream = Stream([TokenRow(item="1", ids=(1, 2), labels_from=1, has_eos=True, truncated=False)], spec.batch, 0)
    with pytest.raises(UserError, match="was written with fsdp2 over 2 processes, now it is undivided"):
        checkpoint.restore(checkpoints, built, stream, training.start(built, spec), any_environment=True)
    assert runner.launch(2, folder, tmp_path / "results", overrides=asked) == [0, 0]


# ------------------------------------------------------------------------------------------------------- refusals


def resolved(folder: Path, **overrides: Any) -> RunSpec:
    return loading.load(folder, overrides={key.replace("__", "."): value for key, value in overrides.items()})


BAD_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "no stage": ({}, "stage = 0 is not supported"),
    "stage 4": ({"zero_optimization": {"stage": 4}}, "stage = 4 is not supported"),
    "no object": ({"zero_optimization": 3}, "must be an object"),
    "its own precision": ({"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}, "bf16: only what leaves"),
    "less precise sums": ({"communication_data_type": "fp16"}, "communication_data_type: only what leaves"),
    "quantised": ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "changes the result"),
    "disk": ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}, "nvme"),
    "another batch": ({"zero_optimization": {"stage": 3}, "train_batch_size": 64}, "= 64, but the experiment says 4"),
    "another clip": ({"zero_optimization": {"stage": 3}, "gradient_clipping": 5.0}, "but the experiment says 1.0"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_deepspeed_file_that_asks_for_something_else(tmp_path: Path, case: str) -> None:
    content, says = BAD_FILES[case]
    folder = toy.write_experiment(tmp_path)
    spec = resolved(folder, launch__deepspeed=str(config(tmp_path, content)))
    with pytest.raises(UserError, match=says):
        starting.check(spec)


@needs_deepspeed
def test_what_a_file_leaves_to_deepspeed(tmp_path: Path) -> None:
    content = {"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}, "train_batch_size": "auto"}
    spec = resolved(toy.write_experiment(tmp_path), launch__deepspeed=str(config(tmp_path, content)))
    found = zero.check(spec)
    assert found["zero_optimization"] == {"stage": 3} and "train_batch_size" not in found
    assert found["train_micro_batch_size_per_gpu"] == 4 and found["gradient_clipping"] == 1.0


def test_settings_that_do_not_go_with_dividing(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    two = {"launch__sharding": "fsdp2", "launch__num_processes": 2}
    starting.check(resolved(folder, **two))
    with pytest.raises(UserError, match="divides over several processes, and this is one"):
        starting.check(resolved(folder, launch__sharding="fsdp2"))
    with pytest.raises(UserError, match="fp16 needs a scaled loss"):
        starting.check(resolved(folder, **two, train__mixed_precision="fp16"))
    with pytest.raises(UserError, match=r"model\.compile was never tried"):
        starting.check(resolved(folder, **two, model__compile=True))
    with pytest.raises(UserError, match="give one"):
        resolved(folder, **two, launch__deepspeed="some.json")
    with pytest.raises(UserError, match="no such file"):
        starting.check(resolved(folder, launch__deepspeed=str(tmp_path / "none.json")))


def test_how_tensors_are_divided_is_no_part_of_the_identity(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    plain = resolved(folder, launch__num_processes=2)
    assert resolved(folder, launch__num_processes=2, launch__sharding="fsdp2").train_key == plain.train_key


def test_a_method_that_works_between_the_passes_is_refused(tmp_path: Path) -> None:
    """AdaLoRA reads gradients after the step and changes what it trains."""
    adapter = {"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "total_step": 6}
    folder = toy.write_experiment(tmp_path, adapter={**adapter, "target_modules": ["q_proj"]})
    spec = resolved(folder, launch__sharding="fsdp2", launch__num_processes=2)
    built = adapting.adapt(models.load(spec.model, "causal"), spec)
    with pytest.raises(UserError, match="works on its weights or gradients outside of the forward pass"):
        training.start(built, spec)


def test_accelerates_fsdp_is_the_second_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy.write_experiment(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert loading.load(folder).launch.sharding == "fsdp2"
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match="FSDP 2 only"):
        loading.load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_precisions_that_cannot_be_divided_together(runner: Runner, tmp_path: Path, way: str) -> None:
    """An adapter in float32 and, trained as a whole beside it, a part of the bfloat16 base."""
    adapter = {**STILL, "modules_to_save": ["input_layernorm"]}
    folder = toy.write_experiment(
        tmp_path, adapter=adapter, model={"dtype": "bfloat16"}, train={"max_steps": 2, "evaluate": "none"}
    )
    assert runner.launch(2, folder, tmp_path / "two", overrides=divided(way, tmp_path)) == [2, 2]  # not a traceback
    assert not RunStore(tmp_path / "two").records()


def test_what_has_another_precision_than_is_wanted() -> None:
    """DeepSpeed would step copies in float32 of what is trained in bfloat16: another result under the same key."""
    half = {"weight": torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))}
    both = {**half, "bias": torch.nn.Parameter(torch.zeros(2))}
    require_precision(half, "launch.sharding=fsdp2")
    with pytest.raises(UserError, match="bfloat16 and float32 are trained side by side"):
        require_precision(both, "launch.sharding=fsdp2")
    require_precision({"bias": both["bias"]}, "launch.deepspeed=a.json", torch.float32)
    for parts in (half, both):
        with pytest.raises(UserError, match=r"1 trained tensors are torch.bfloat16, the first is weight"):
            require_precision(parts, "launch.deepspeed=a.json", torch.float32)


def test_accelerates_deepspeed_has_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one the run would go on undivided, and nobody would be told."""
    folder = toy.write_experiment(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    with pytest.raises(UserError, match="names no file of its settings"):
        loading.load(folder)
    assert loading.load(folder, overrides={"launch.deepspeed": "mine.json"}).launch.deepspeed == "mine.json"
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "theirs.json")
    assert loading.load(folder).launch.deepspeed == "theirs.json"


# ---------------------------------------------------------------------------------------------------- optimizers


def trainable() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(3, 3))]


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "RMSprop", "NAdam"])
def test_an_optimizer_that_goes_by_elements_can_be_divided(name: str) -> None:
    optimizer = getattr(torch.optim, name)(trainable(), lr=0.1)
    require_elementwise(optimizer, name)
    assert not optimizer.state and len(optimizer.param_groups[0]["params"]) == 1


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_an_optimizer_that_looks_at_matrices_cannot_be_divided(name: str) -> None:
    with pytest.raises(UserError, match="looks at whole tensors"):
        require_elementwise(getattr(torch.optim, name)(trainable(), lr=0.1), name)


def test_hooks_of_a_package_are_lifted_and_put_back_in_their_order() -> None:
    seen: list[str] = []

    def foreign(*_: Any) -> None:
        seen.append("foreign")

    foreign.__module__ = "deepspeed.somewhere"
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    module[0].register_forward_pre_hook(foreign)
    module[0].register_forward_hook(lambda *_: seen.append("ours"))
    module[0].register_forward_hook(foreign)
    with without_hooks(module, "deepspeed."):
        module(torch.zeros(1, 2))
    assert seen == ["ours"]
    module(torch.zeros(1, 2))
    assert seen == ["ours", "foreign", "ours", "foreign"]
