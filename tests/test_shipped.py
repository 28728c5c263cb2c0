"""The experiments that are shipped of S2 and S3: their documents' values, their parameter counts, and no download."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.cli import main
from peftlab.config import loading
from peftlab.config.spec import RunSpec
from peftlab.modelling import counting

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
GLUE = (
    "full-finetuning/roberta-base",
    *(f"lora/roberta-base-rank128{one}" for one in ("", "-dora", "-corda", "-pissa")),
)
MATH = tuple(f"lora/llama-3-8B-rank32{one}" for one in ("", "-dora", "-corda", "-pissa"))
NEO = ("hira/gpt-neo-1.3B-rank64", "lora/gpt-neo-1.3B-rank64", "full-finetuning/gpt-neo-1.3B", "ia3/gpt-neo-1.3B")
CLASSIFIER = 768 * 768 + 768 + 768 * 2 + 2


def spec_of(name: str) -> RunSpec:
    return loading.load(EXPERIMENTS / name)


def test_all_pass_check_without_a_download(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = [str(EXPERIMENTS / name) for name in (*GLUE, *MATH, *NEO)]
    assert main(["check", *names]) == 0
    output = capsys.readouterr()
    assert "13 checked, all well" in output.err
    assert output.out.count("counted without weights") == len(names)


@pytest.mark.parametrize(
    ("name", "trainable"),
    [
        ("lora/roberta-base-rank128", 21_233_664 + CLASSIFIER),
        ("lora/roberta-base-rank128-corda", 21_233_664 + CLASSIFIER),
        ("lora/roberta-base-rank128-pissa", 21_233_664 + CLASSIFIER),
        ("lora/roberta-base-rank128-dora", 21_316_608 + CLASSIFIER),
        ("full-finetuning/roberta-base", 124_647_170),
        # S3's table of costs: 12.58M for HiRA and LoRA, 98.3K for IA3, 1.33B for the whole model with its adapter
        ("hira/gpt-neo-1.3B-rank64", 12_582_912),
        ("lora/gpt-neo-1.3B-rank64", 12_582_912),
        ("ia3/gpt-neo-1.3B", 98_304),
        ("full-finetuning/gpt-neo-1.3B", 1_315_575_808),
        # by hand, in each of 32 layers: q and o (4096 + 4096), k and v (4096 + 1024), three of (4096 + 14336), times r
        ("lora/llama-3-8B-rank32", 32 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)),
    ],
)
def test_parameter_counts(name: str, trainable: int) -> None:
    assert counting.count_parameters(spec_of(name)).trainable == trainable


def test_every_linear_layer_of_the_encoder_is_adapted_and_none_of_the_head() -> None:
    """S2: all linear layers but the classifier, 72 of them."""
    built = counting.without_weights(spec_of("lora/roberta-base-rank128"))
    adapted = [name for name in built.trainable() if "lora_A" in name]
    assert len(adapted) == 72 and not any("classifier" in name for name in adapted)


@pytest.mark.parametrize("name", GLUE)
def test_settings_of_the_glue_set(name: str) -> None:
    spec = spec_of(name)
    assert (spec.model.id, spec.data.max_length, spec.seed) == ("FacebookAI/roberta-base", 128, 0)
    assert (spec.train.num_train_epochs, spec.global_batch_size, spec.batch.order) == (3, 32, "shuffled")
    optim = spec.optim
    assert (optim.optimizer, optim.learning_rate, optim.lr_scheduler_type) == ("AdamW", 4e-5, "linear")
    assert (optim.warmup_steps, optim.max_grad_norm, optim.weight_decay) == (0, 0, 0.01)
    if spec.adapter is not None:
        assert (spec.adapter["r"], spec.adapter["lora_alpha"], spec.adapter["lora_dropout"]) == (128, 128, 0.0)


@pytest.mark.parametrize("name", MATH)
def test_settings_of_the_math_set(name: str) -> None:
    spec = spec_of(name)
    assert spec.adapter is not None and spec.task.train is not None
    assert (spec.model.id, spec.model.dtype, spec.data.max_length) == ("meta-llama/Meta-Llama-3-8B", "bfloat16", 512)
    assert (spec.task.train.dataset, spec.task.train.split) == ("meta-math/MetaMathQA", "train[:100000]")
    assert spec.task.train.max_characters is None
    assert (spec.train.num_train_epochs, spec.batch.per_device_train_batch_size, spec.global_batch_size) == (1, 1, 128)
    optim = spec.optim
    assert (optim.learning_rate, optim.lr_scheduler_type, optim.warmup_steps, optim.weight_decay) == (
        2e-5,
        "cosine",
        0.03,
        0.0,
    )
    assert (spec.adapter["r"], spec.adapter["lora_alpha"], spec.adapter["lora_dropout"]) == (32, 32, 0.0)


@pytest.mark.parametrize("name", [name for name in (*GLUE, *MATH) if name.endswith("corda")])
def test_corda_looks_at_256_random_rows_as_its_document_says(name: str) -> None:
    spec = spec_of(name)
    assert (spec.calibration.rows, spec.calibration.selection) == (256, "random")
    assert spec.adapter is not None and spec.adapter["corda_config"] == {"corda_method": "ipm"}


@pytest.mark.parametrize(
    ("name", "rate", "rows", "accumulated", "warmup", "seed"),
    [
        ("hira/gpt-neo-1.3B-rank64", 5e-5, 8, 32, 100, 36),
        ("lora/gpt-neo-1.3B-rank64", 5e-5, 8, 32, 10, 36),
        ("full-finetuning/gpt-neo-1.3B", 1e-5, 4, 64, 100, 36),
        ("ia3/gpt-neo-1.3B", 1e-5, 32, 1, 10, 0),
    ],
)
def test_settings_of_s3(name: str, rate: float, rows: int, accumulated: int, warmup: int, seed: int) -> None:
    spec = spec_of(name)
    assert (spec.optim.learning_rate, spec.optim.warmup_steps, spec.seed) == (rate, warmup, seed)
    assert (spec.batch.per_device_train_batch_size, spec.batch.gradient_accumulation_steps) == (rows, accumulated)
    assert (spec.model.id, spec.train.num_train_epochs) == ("EleutherAI/gpt-neo-1.3B", 1)
    assert (spec.task.name, spec.train.eval_steps) == ("commonsense_170k", 80)
    assert spec.model.gradient_checkpointing and spec.data.loss_mask == "answer"
    if spec.adapter is not None:
        assert spec.adapter["target_modules"] == ["q_proj", "v_proj"]


def test_ia3_of_s3_names_no_feed_forward_module() -> None:
    """Without the empty list peft takes the model's own, which are not among the targets, and refuses."""
    assert (spec_of("ia3/gpt-neo-1.3B").adapter or {})["feedforward_modules"] == []
