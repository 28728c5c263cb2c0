"""The rows that starts read: which they are, that padding never counts, what is kept of them, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import toy
from fork_runner import Runner
from peftlab.cli import main
from peftlab.config import loading
from peftlab.errors import UserError
from peftlab.job import preflight, runs
from peftlab.loop import preparation
from peftlab.modelling import counting
from peftlab.protocols import find
from peftlab.records.store import RunStore
from peftlab.rows import batching, calibration, data
from peftlab.scores import scoring
from starts_material import ADAPTER, spec_of

EVA = {"eva_config": {"rho": 1.0, "use_label_mask": False}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def chosen(spec: Any, start: str = "corda") -> calibration.Chosen:
    return calibration.choose(spec, find("starts", start), data.load(spec), scoring.load_base(spec).tokenizer)


def weights_of(spec: Any) -> dict[str, torch.Tensor]:
    built = preparation.prepare(spec, data.load(spec), scoring.load_base(spec)).built
    return {name: tensor.detach().clone() for name, tensor in built.model.named_parameters()}


def test_which_rows(tmp_path: Path) -> None:
    every = [row.item for row in data.load(spec_of(tmp_path, "corda")).train]
    first = chosen(spec_of(tmp_path, "corda", calibration={"rows": 6, "selection": "first"}))
    assert [row.item for row in first.rows] == every[:6]
    drawn = [row.item for row in chosen(spec_of(tmp_path, "corda", calibration={"rows": 6})).rows]
    assert len(set(drawn)) == 6 and drawn == sorted(drawn, key=every.index) and drawn != every[:6]
    more = [row.item for row in chosen(spec_of(tmp_path, "corda", calibration={"rows": 20})).rows]
    assert set(drawn) < set(more)
    other = chosen(spec_of(tmp_path, "corda", calibration={"rows": 6}, data={"data_seed": 1}))
    assert {row.item for row in other.rows} != set(drawn)
    same = chosen(spec_of(tmp_path, "corda", calibration={"rows": 6}, seed=5))
    assert [row.item for row in same.rows] == drawn, "the run's seed changes no rows"
    valid = chosen(spec_of(tmp_path, "corda", calibration={"rows": 8, "source": "valid"}))
    assert {row.item for row in valid.rows} == {row.item for row in data.load(spec_of(tmp_path, "corda")).valid}
    short = chosen(spec_of(tmp_path, "corda", calibration={"rows": 6, "max_tokens": 9}))
    assert max(len(row.ids) for row in short.rows) == 9 and short.facts["truncated"] > 0


def test_rows_are_part_of_the_key_and_of_the_record(tmp_path: Path) -> None:
    keys = {
        spec_of(tmp_path, "corda", calibration=group).train_key
        for group in ({}, {"rows": 6}, {"rows": 6, "selection": "first"}, {"rows": 6, "max_tokens": 9})
    }
    assert len(keys) == 4
    kept = spec_of(tmp_path, "corda", calibration={"rows": 6, "cache": "none"})
    assert kept.train_key in keys
    record = runs.run(
        spec_of(tmp_path, "corda", calibration={"rows": 6}, train={"evaluate": "none"}), RunStore(tmp_path / "results")
    )
    facts = record.rows["calibration"]
    assert facts["rows"] == 6 and facts["source"] == "train" and facts["tokens"] > 6 and facts["fingerprint"]


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("start", ["eva", "lora_ga"])
def test_padding_never_counts(tmp_path: Path, start: str, architecture: str) -> None:
    """A batch of rows of unequal length gives what the same batch gives with yet more padding."""
    spec = spec_of(tmp_path, start, architecture=architecture, calibration={"rows": 8, "batch_size": 8}, adapter=EVA)
    plain = weights_of(spec)

    def wider(rows: Any, **options: Any) -> Any:
        batch = batching.collate(rows, **options)
        length = batch.input_ids.shape[1]
        assert (batch.attention_mask == 0).any(), "else nothing is padded here"
        pad = {"input_ids": 9, "attention_mask": 0, "labels": -100, "type_ids": 0}
        more: dict[str, Any] = {
            name: torch.nn.functional.pad(value, (0, 11), value=pad[name])
            for name, value in vars(batch).items()
            if name in pad and value is not None and value.shape[1] == length
        }
        return dataclasses.replace(batch, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peftlab.rows.calibration.collate", wider)
        patch.setenv("PEFTLAB_CACHE", str(tmp_path / "another"))
        padded = weights_of(spec)
    for name, tensor in plain.items():
        if "lora_" in name:  # products of singular vectors, whose signs may differ
            found = padded[name]
            torch.testing.assert_close(found.abs(), tensor.abs(), atol=2e-3, rtol=1e-2)


def test_what_was_computed_is_read_again_and_gives_the_same_bytes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import corda

    # gpt2 has dropout, which draws while the gradient is taken: what is drawn after it must not change with the file
    for start, architecture in (("lora_ga", "gpt2"), ("lora_ga", "llama"), ("eva", "llama"), ("corda", "llama")):
        spec = spec_of(tmp_path, start, architecture=architecture)
        fresh, stored = weights_of(spec), weights_of(spec)
        unkept = spec.model_copy(update={"calibration": spec.calibration.model_copy(update={"cache": "none"})})
        alone = weights_of(unkept)
        assert all(torch.equal(fresh[name], stored[name]) and torch.equal(fresh[name], alone[name]) for name in fresh)
    ranks = spec_of(tmp_path, "corda", adapter={"r": 2})
    with monkeypatch.context() as patch:
        patch.setattr(corda, "calib_cov_distribution", _not_again(corda.calib_cov_distribution))
        weights_of(ranks)
    files = {path.name.split("-")[0]: path for path in cache.rglob("*.safetensors")}
    together = load_file(str(files["covariance"]))
    assert sorted(name.count("|") for name in together) == [1, 1], "q and v of a layer see the same"
    files["covariance"].write_bytes(b"torn")
    files["factors"].unlink()
    again = weights_of(spec_of(tmp_path, "corda"))
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)


@pytest.mark.parametrize("start", ["lora_ga", "eva"])
def test_rows_that_are_divided_otherwise_are_computed_anew(tmp_path: Path, start: str) -> None:
    """The mean over batches of 4 is not that over batches of 8, though the rows are the same."""

    def kept(size: int, cache: str) -> dict[str, torch.Tensor]:
        root = tmp_path / f"{size}-{cache}"
        return weights_of(spec_of(root, start, calibration={"rows": 16, "batch_size": size, "cache": cache}))

    kept(8, "all")
    stored, alone = kept(4, "all"), kept(4, "none")
    assert all(torch.equal(stored[name], alone[name]) for name in alone)


def _not_again(whole: Any) -> Any:
    def distribution(model: Any, config: Any, run_model: Any, *others: Any) -> Any:
        assert run_model.__name__ == "give", "the covariance of another rank is read, not computed"
        return whole(model, config, run_model, *others)

    return distribution


@pytest.mark.slow
def test_two_processes_begin_alike(tmp_path: Path) -> None:
    """Each reads what the one that came first has computed; the weights are compared at the end of the training."""
    experiments = {}
    for processes in (1, 2):
        folder = toy.write_experiment(
            tmp_path,
            name=f"lora/{processes}",
            adapter={**ADAPTER, "target_modules": ["q_proj"], "init_lora_weights": "corda"},
            calibration={"rows": 8},
            train={"max_steps": 2, "evaluate": "none"},
            launch={"num_processes": processes},
        )
        experiments[processes] = folder
    runner = Runner(environment={"PEFTLAB_CACHE": str(tmp_path / "cache")})
    try:
        assert runner.launch(2, experiments[2], tmp_path / "results") == [0, 0]
    finally:
        runner.close()


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("start", "groups", "message"),
    [
        ("corda", {"calibration": {}}, "reads 256 rows .what its paper took., and train has 40"),
        ("lora_ga", {"calibration": {}}, "reads 128 rows"),
        ("corda", {"calibration": {"rows": 41}}, "reads 41 rows, and train has 40 rows"),
        ("eva", {"calibration": {"source": "test"}}, "calibration.source = test: there is no such part or text"),
        ("corda", {"calibration": {"source": "wikitxt"}}, "there is no such part or text"),
        ("corda", {"calibration": {"rows": 8, "batch_size": 2}}, "one row at a time"),
        ("lora_ga", {"calibration": {"rows": 8, "max_tokens": 3}}, "no training row has a token of its target"),
        ("corda", {"quant": {"method": "bnb-nf4"}, "calibration": {"rows": 8}}, "would be rounded again"),
        ("pissa", {"quant": {"method": "bnb-int8"}}, "would be rounded again"),
    ],
)
def test_what_no_start_can_read(tmp_path: Path, start: str, groups: dict[str, Any], message: str) -> None:
    spec = spec_of(tmp_path, start, train={"evaluate": "none"}, **groups)
    with pytest.raises(UserError, match=message) as found:
        runs.run(spec, RunStore(tmp_path / "results"))
    assert found.value.fix
    assert RunStore(tmp_path / "results").records() == []


@pytest.mark.parametrize(
    ("start", "adapter", "message"),
    [
        ("corda", {"corda_config": {"cache_file": "factors.pt"}}, "keeps its caches as pickles"),
        ("corda", {"corda_config": {"covariance_file": "c.pt"}}, "keeps its caches as pickles"),
        ("loftq", {"lora_alpha": 8, "loftq_config": {"loftq_bits": 4}}, "scaled by 1"),
        ("loftq", {"loftq_config": {"loftq_bits": 3}}, "loftq_bits = 3"),
    ],
)
def test_what_is_refused_of_a_config(tmp_path: Path, start: str, adapter: dict[str, Any], message: str) -> None:
    spec = spec_of(tmp_path, start, adapter={"use_rslora": False, **adapter})
    with pytest.raises(UserError, match=message):
        preflight.check(spec)


def test_components_that_do_not_settle_end_with_an_error(tmp_path: Path) -> None:
    """peft goes through the rows for ever, and prints of each batch that is too short."""
    spec = spec_of(tmp_path, "eva", calibration={"rows": 4, "batch_size": 1}, adapter={"r": 16})
    with pytest.raises(UserError, match="have not settled after 20 passes"):
        weights_of(spec)


def test_a_layer_that_sees_rows_and_no_tokens(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "corda", architecture="bert", adapter={"target_modules": ["query", "pooler.dense"]})
    with pytest.raises(UserError, match=r"bert.pooler.dense gets one for each row"):
        weights_of(spec)


def test_counts_are_those_of_the_run_or_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for start in ("corda", "lora_ga", "pissa"):
        spec = spec_of(tmp_path, start)
        built = preparation.prepare(spec, data.load(spec), scoring.load_base(spec)).built
        counted = counting.count_parameters(spec)
        assert counted.source == "meta" and counted.trainable == built.num_weights()["trainable"]
    moved = spec_of(tmp_path, "eva")
    assert "decides each layer's rank by the rows" in str(counting.count_parameters(moved).reason)
    fixed = spec_of(tmp_path, "eva", adapter=EVA)
    built = preparation.prepare(fixed, data.load(fixed), scoring.load_base(fixed)).built
    assert counting.count_parameters(fixed).trainable == built.num_weights()["trainable"]
    assert main(["check", str(Path(moved.folder))]) == 0
    assert "not computable: EVA" in capsys.readouterr().out


def test_a_start_is_never_quietly_another(tmp_path: Path) -> None:
    """What peft begins as plain LoRA where nobody prepared it (LoRA-GA, EVA), or knows in one spelling only."""
    plain = weights_of(spec_of(tmp_path, "gaussian"))
    for start in ("eva", "lora_ga", "corda", "orthogonal"):
        found = weights_of(spec_of(tmp_path, start))
        unlike = [name for name in plain if "lora_A" in name and not torch.equal(found[name], plain[name])]
        assert len(unlike) == 4
    with pytest.raises(UserError, match="init_lora_weights = 'PISSA'"):
        preflight.check(loading.load(spec_of(tmp_path, "PISSA").folder))
