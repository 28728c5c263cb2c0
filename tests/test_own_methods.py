"""Methods that peft does not have: what they train, save, load again, resume and put off; and how they are refused."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

import toy
from comparing import outcome
from peftlab import own
from peftlab.config import loading
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.events import Saved
from peftlab.job import runs
from peftlab.loop import preparation, training
from peftlab.modelling import adapting, counting, merging, models, weights
from peftlab.modelling.models import Base, Built
from peftlab.records.store import RunStore
from peftlab.rows import data

ROOT = Path(__file__).parents[1]
BITFIT = {"peft_type": "BITFIT"}
KNOWHIRA = {"peft_type": "KNOWHIRA", "r": 4, "target_modules": ["q_proj", "down_proj"], "ortho_lambda": 1e-3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bitfit-bert": ("bert", BITFIT),
    "bitfit-gpt2": ("gpt2", BITFIT),
    "knowhira-llama": ("llama", KNOWHIRA),
    "knowhira-bert": ("bert", {"peft_type": "KnowHiRA", "r": 4}),
}


def trained(spec: RunSpec, steps: int = 3) -> tuple[Built, dict[str, torch.Tensor]]:
    """The adapted model after a few steps, and every weight of the base before them."""
    base = models.load(spec.model, models.kind_of(spec), labels=spec.task.labels, seed=spec.seed)
    before = {name: tensor.detach().clone() for name, tensor in base.model.state_dict().items()}
    ready = preparation.prepare(spec, data.load(spec), base)
    for step in training.steps(ready.built, ready.stream, spec, ready.state):
        if step.step == steps:
            break
    return ready.built, before


def logits(model: Any) -> torch.Tensor:
    """Of fixed tokens, without dropout."""
    model.eval()
    ids = torch.arange(10, 34).reshape(2, 12)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


def spec_of(root: Path, case: str, **groups: Any) -> RunSpec:
    architecture, adapter = CASES[case]
    return loading.load(
        toy.write_experiment(root, name=f"own/{case}", architecture=architecture, adapter=adapter, **groups)
    )


@pytest.mark.parametrize("case", CASES)
def test_trains_saves_loads_again_and_can_be_put_off(tmp_path: Path, case: str) -> None:
    spec = spec_of(tmp_path, case)
    built, before = trained(spec)
    after = logits(built.model)
    untrained = models.load(spec.model, built.kind, labels=spec.task.labels, seed=spec.seed).model
    assert not torch.equal(after, logits(untrained))
    trainable = built.trainable()
    for name, tensor in built.model.state_dict().items():
        plain = name.replace(".base_layer.", ".")
        if plain in before and name not in trainable:
            assert torch.equal(tensor, before[plain]), f"{name} is frozen"
    weights.save(built, tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [own.CONFIG_FILE, own.WEIGHTS_FILE]
    again = weights.load_trained(spec, tmp_path / "saved")
    assert torch.equal(logits(again.model), after), "loaded again, it is the same to the bit"
    for model in (built.model, again.model):
        with own.disabled(model):
            assert torch.equal(logits(model), logits(untrained)), "put off, it is the base"
        assert torch.equal(logits(model), after)
    merged = logits(merging.merge(again))
    assert torch.allclose(merged, after, atol=1e-5)


@pytest.mark.parametrize("case", ["bitfit-bert", "knowhira-llama"])
def test_a_run_that_was_cut_ends_as_one_that_was_not(tmp_path: Path, case: str) -> None:
    spec = spec_of(tmp_path, case, train={"eval_steps": 3})
    runs.run(spec, RunStore(tmp_path / "whole"))
    cut = runs.events(spec, RunStore(tmp_path / "cut"))
    assert any(isinstance(event, Saved) and event.step == 4 for event in cut)
    cut.close()  # type: ignore[attr-defined]
    record = runs.run(spec, RunStore(tmp_path / "cut"))
    assert record.cost.num_parts == 2 and outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_counts_without_weights_are_those_of_the_model(tmp_path: Path) -> None:
    for case in CASES:
        spec = spec_of(tmp_path / case, case)
        counts = counting.count_parameters(spec)
        base = models.load(spec.model, models.kind_of(spec), labels=spec.task.labels)
        built = adapting.adapt(base, spec)
        assert counts.source == "meta"
        assert counts.trainable == sum(one.numel() for one in built.trainable().values())
        assert counts.total == sum(one.numel() for one in built.model.parameters())


@pytest.mark.parametrize("keeps", [True, False])
def test_in_half_precision_an_adapter_is_kept_in_float32_unless_asked_otherwise(tmp_path: Path, keeps: bool) -> None:
    spec = spec_of(tmp_path, "knowhira-llama", model={"dtype": "bfloat16", "autocast_adapter_dtype": keeps})
    built, _ = trained(spec)
    assert {one.dtype for one in built.trainable().values()} == {torch.float32 if keeps else torch.bfloat16}
    after = logits(built.model)
    assert after.dtype == torch.bfloat16
    weights.save(built, tmp_path / "saved")
    assert torch.equal(logits(weights.load_trained(spec, tmp_path / "saved").model), after)


# ------------------------------------------------------------------------------------------------------------- BitFit


def test_bitfit_trains_each_bias_and_the_new_head_and_no_norm(tmp_path: Path) -> None:
    built, _ = trained(spec_of(tmp_path, "bitfit-bert"))
    names = set(built.trainable())
    biases = {name for name, _ in built.model.named_parameters() if name.endswith("bias")}
    assert names == biases | {"classifier.weight"}
    assert any("LayerNorm.bias" in name for name in names) and not any("LayerNorm.weight" in name for name in names)


def test_bitfit_on_bert_base_trains_what_its_paper_says(tmp_path: Path) -> None:
    """Table 1: 0.09 % of BERT base. By hand: 7 x 768 + 3072 a layer, 768 in embeddings and pooler, 1538 in a head."""
    spec = spec_of(tmp_path, "bitfit-bert")
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(BertConfig(num_labels=2))
        base = Base(model=model, tokenizer=None, kind="classify", stop_ids=(), facts={})
        built = adapting.adapt(base, spec)
    count = sum(one.numel() for name, one in built.trainable().items() if not name.startswith("classifier"))
    assert count == 12 * (7 * 768 + 3072) + 768 + 768 == 102_912
    assert round(100 * count / 110e6, 2) == 0.09
    assert sum(one.numel() for one in built.trainable().values()) == count + 1538


def test_bitfit_of_some_modules(tmp_path: Path) -> None:
    """Section 4.2 trains the biases of the query and of the second linear layer alone."""
    adapter = {"peft_type": "BITFIT", "target_modules": ["query", "intermediate.dense"]}
    spec = loading.load(toy.write_experiment(tmp_path, name="bitfit/some", architecture="bert", adapter=adapter))
    built = adapting.adapt(models.load(spec.model, "classify", labels=spec.task.labels), spec)
    own_names = {name for name in built.trainable() if not name.startswith("classifier")}
    assert len(own_names) == 4 and all("query.bias" in name or "intermediate.dense.bias" in name for name in own_names)


# -------------------------------------------------------------------------------------------------------- saved files


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / own.WEIGHTS_FILE
    found = load_file(str(path))
    for name, tensor in tensors.items():
        key = name.replace("__", ".")
        found.pop(key, None)
        if tensor is not None:
            found[key] = tensor
    save_file(found, str(path))


PLACE = "model__layers__0__self_attn__q_proj__A"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({PLACE: None}, "q_proj.A is missing"),
        ({"model__odd": torch.zeros(1)}, "model.odd belongs to no part of this adapter"),
        ({PLACE: torch.zeros(5, 5)}, "q_proj.A has the shape [5, 5], here [32, 4]"),
    ],
    ids=["missing", "extra", "another shape"],
)
def test_an_adapter_that_is_not_this_one_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    spec = spec_of(tmp_path, "knowhira-llama")
    built = adapting.adapt(models.load(spec.model, "causal"), spec)
    weights.save(built, tmp_path / "saved")
    change(tmp_path / "saved", **changes)
    with pytest.raises(UserError, match="is not the adapter of this config on this base") as error:
        weights.load_trained(spec, tmp_path / "saved")
    assert says in error.value.message


@pytest.mark.parametrize("adapter", [toy.LORA, KNOWHIRA], ids=["peft's", "ours"])
def test_a_pickle_in_the_place_of_safetensors_is_not_read(tmp_path: Path, adapter: dict[str, Any]) -> None:
    spec = loading.load(toy.write_experiment(tmp_path, adapter=adapter))
    built = adapting.adapt(models.load(spec.model, "causal"), spec)
    weights.save(built, tmp_path / "saved")
    (tmp_path / "saved" / own.WEIGHTS_FILE).unlink()
    (tmp_path / "saved" / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch made'\ntR.")
    with pytest.raises(UserError, match=r"no safetensors in .*adapter_model\.bin"):
        weights.load_trained(spec, tmp_path / "saved")
    assert not Path("made").exists()


# -------------------------------------------------------------------------------------------- from a user's own package

THEIRS = '''
"""A method of somebody else: a factor on each weight that grows by itself, which only a checkpoint can know."""

import torch
from torch import nn

from peftlab import own
from peftlab.config.settings import setting
from peftlab.protocols import Method


class Config(own.OwnConfig):
    growth: float = setting(1.5, "per step")


class Growing(own.Layer):
    def __init__(self, base_layer):
        super().__init__(base_layer)
        self.scale = nn.Parameter(torch.zeros(base_layer.out_features, 1, device=base_layer.weight.device))
        self.factor = 1.0

    def update(self):
        return self.base_layer.weight * self.scale * self.factor


def wrap(base, config, make=None):
    own.put_on(base, ["q_proj"], Growing, "GROWING")
    base.growth = config.growth
    return base


def after_step(model, step):
    for layer in own.layers(model):
        layer.factor *= model.growth


PLUGIN = Method(config=Config, wrap=wrap, after_step=after_step)
NOTHING = Method()
'''


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package with a method; returns the name that a config gives it."""
    (tmp_path / "packages" / "grown").mkdir(parents=True)
    (tmp_path / "packages" / "grown" / "__init__.py").write_text("")
    (tmp_path / "packages" / "grown" / "methods.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    for name in ("grown", "grown.methods"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "grown.methods:PLUGIN"


def test_a_method_of_a_package_runs_when_the_user_names_the_package(
    tmp_path: Path, theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its layers keep besides tensors is in the checkpoint, though nothing here knows the method."""
    folder = toy.write_experiment(tmp_path, name="their/method", adapter={"peft_type": theirs, "growth": 1.25})
    spec = loading.load(folder)
    with pytest.raises(UserError, match=r"code outside peftlab: 'grown\.methods:PLUGIN'"):
        runs.run(spec, RunStore(tmp_path / "refused"))
    assert "grown.methods" not in sys.modules
    monkeypatch.setenv("PEFTLAB_PLUGINS", "grown")
    assert spec.method == theirs.lower()
    runs.run(spec, RunStore(tmp_path / "whole"))
    cut = runs.events(spec, RunStore(tmp_path / "cut"))
    assert any(isinstance(event, Saved) and event.step == 4 for event in cut)
    cut.close()  # type: ignore[attr-defined]
    [checkpoint] = (tmp_path / "cut").parent.glob("*cut/*/checkpoints/step-000004")
    attributes = json.loads((checkpoint / "state.json").read_text())["attributes"]
    assert {value for key, value in attributes.items() if key.endswith("factor")} == {1.25**4}
    runs.run(spec, RunStore(tmp_path / "cut"))
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_the_skeleton_in_contributing_is_a_method(tmp_path: Path, theirs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (tmp_path / "packages" / "grown" / "methods.py").write_text(code)
    monkeypatch.setenv("PEFTLAB_PLUGINS", "grown")
    folder = toy.write_experiment(tmp_path, name="their/skeleton", adapter={"peft_type": theirs, "r": 2})
    record = runs.run(loading.load(folder), RunStore(tmp_path / "results"))
    assert record.status == "finished" and record.cost.num_trainable_parameters == 2 * 2 * (32 + 32 + 16 + 32)
    assert record.curve["method_loss"][-1] > record.curve["method_loss"][0] == 0


OFFERS: dict[str, tuple[dict[str, Any], str]] = {
    "no config": ({"peft_type": "grown.methods:NOTHING"}, "the plug-in 'grown.methods:NOTHING' has no config"),
    "no method": ({"peft_type": "grown.methods:Config"}, "not a Method"),
    "another key": ({"peft_type": "grown.methods:PLUGIN", "grwth": 2.0}, "PLUGIN has no setting 'grwth'"),
    "text": (
        {"peft_type": "grown.methods:PLUGIN", "growth": "fast"},
        "'growth' = \"fast\": Input should be a valid number",
    ),
}


@pytest.mark.parametrize("case", OFFERS)
def test_what_a_package_must_offer(tmp_path: Path, theirs: str, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setenv("PEFTLAB_PLUGINS", theirs.partition(".")[0])
    adapter, says = OFFERS[case]
    spec = loading.load(toy.write_experiment(tmp_path, name="their/bad", adapter=adapter))
    with pytest.raises(UserError) as error:
        runs.run(spec, RunStore(tmp_path / "results"))
    assert says in error.value.message
    assert not list(tmp_path.glob("*results/*.json"))


# ---------------------------------------------------------------------------------------------- the size of an update

HIRA = {"peft_type": "HIRA", "r": 2, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("adapter", "ranks"),
    [
        ({**toy.LORA, "r": 2, "target_modules": ["q_proj"]}, range(2, 3)),
        (HIRA, range(28, 33)),
        ({"peft_type": "HADAMARD", "r": 2, "target_modules": ["q_proj"]}, range(28, 33)),
    ],
    ids=["lora", "hira", "hadamard"],
)
def test_rank_and_norm_of_an_update(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], adapter: dict[str, Any], ranks: range
) -> None:
    """S3 declares these figures and does not compute them. A product with a weight of rank 32 has nearly that rank."""
    spec = importlib.util.spec_from_file_location("update_size", ROOT / "examples" / "update_size.py")
    assert spec is not None and spec.loader is not None
    update_size = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update_size)
    folder = toy.write_experiment(tmp_path, adapter=adapter, train={"evaluate": "none"})
    resolved = loading.load(folder)
    record = runs.run(resolved, RunStore(tmp_path / "results"))
    update_size.main([record.key, "--results", str(tmp_path / "results")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "q_proj" in line]
    assert len(lines) == 2 and all(int(line[1]) in ranks for line in lines)
    built = weights.load_trained(resolved, RunStore(tmp_path / "results").folder_of(record) / "adapter")
    before = models.load(resolved.model, "causal").model.model.layers[0].self_attn.q_proj.weight
    merged = merging.merge(built).model.layers[0].self_attn.q_proj.weight
    norm = float((merged.detach() - before.detach()).double().norm())
    assert float(lines[0][2]) == pytest.approx(norm, rel=1e-3) and norm > 0
