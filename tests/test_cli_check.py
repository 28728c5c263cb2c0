"""`check`, `new`, `list` and `env`: what they print, refuse and write; no model is loaded here."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli_material import PARAMETERS, TASK, experiment, working_folder
from peftlab.cli import catalogue, main
from peftlab.config import loading, spec
from peftlab.config.groups import GROUPS
from peftlab.errors import UserError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_folder(tmp_path, monkeypatch)


def test_check_prints_keys_and_the_half_empty_batch(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--no-model", experiment("lora/first")]) == 0
    output = capsys.readouterr()
    resolved = loading.load("experiments/lora/first")
    for text in (resolved.train_key, resolved.arm, resolved.method, "10 of 50 rows"):
        assert text in output.out
    assert "all well" in output.err
    assert main(["check", "--no-model", "experiments", "batch.per_device_eval_batch_size=30"]) == 0
    assert "last validation batch" not in capsys.readouterr().out


WRONG: list[tuple[str, Callable[[], str], list[str]]] = [
    ("bad JSON", lambda: experiment("lora/x", parameters='{"task": '), ["is not valid JSON", "line 1"]),
    ("key twice", lambda: experiment("lora/x", adapter='{"r": 1, "r": 2}'), ["key 'r' is given twice"]),
    (
        "misspelt key",
        lambda: experiment("lora/x", parameters={**PARAMETERS, "optim": {"learning_rat": 1.0}}),
        ["learning_rate"],
    ),
    (
        "setting without group",
        lambda: experiment("lora/x", parameters={**PARAMETERS, "max_steps": 5}),
        ["train.max_steps"],
    ),
    (
        "wrong type",
        lambda: experiment("lora/x", parameters={**PARAMETERS, "train": {"max_steps": "many"}}),
        ["max_steps"],
    ),
    (
        "peft type",
        lambda: experiment("lora/x", adapter={"peft_type": "IAA3"}),
        ["did you mean 'IA3'?", "adapter_config.json"],
    ),
    ("no peft type", lambda: experiment("lora/x", adapter={"r": 8}), ["'peft_type' is required"]),
    (
        "unknown task",
        lambda: experiment("lora/x", parameters={**PARAMETERS, "task": "gsm8kk"}),
        ["did you mean 'gsm8k'?"],
    ),
    (
        "unknown engine",
        lambda: experiment("lora/x", parameters={**PARAMETERS, "generation": {"engine": "hff"}}),
        ["'hf'"],
    ),
    ("empty folder", lambda: experiment("lora/x", parameters=None, adapter=None), ["holds no experiment"]),
    ("folder name", lambda: experiment("lora/a b"), ["cannot name a result"]),
]


@pytest.mark.parametrize(("make", "texts"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_check_says_what_is_wrong(
    place: Path, capsys: pytest.CaptureFixture[str], make: Callable[[], str], texts: list[str]
) -> None:
    folder = make()
    assert main(["check", "--no-model", folder]) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ")
    assert "1 problem" in output
    for text in texts:
        assert text in output


def test_check_reports_every_problem_of_every_path(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment("lora/both", adapter={"peft_type": "LORRA"}, parameters={**PARAMETERS, "seeed": 1})
    two = Path(experiment("lora/two"))
    (two / "training_parameters.json").write_text("{}")
    odd = Path(experiment("lora/odd"))
    (odd / "adaptor_config.json").write_text("{}")
    Path("bad.yaml").write_text(TASK.replace("{name: numeric}", "{name: numericc}"))
    Path("mode.yaml").write_text(TASK.replace("{name: numeric}", "{name: numeric, modes: [loose]}"))
    assert main(["check", "--no-model", "experiments", "bad.yaml", "mode.yaml", "additions.yaml"]) == 2
    output = capsys.readouterr()
    for text in (
        "did you mean 'LORA'?",
        "unknown key 'seeed'",
        "holds both training_params.json and training_parameters.json",
        "did you mean 'adapter_config.json'?",
        "unknown grader 'numericc'",
        "unknown mode of numeric 'loose'",
        "6 checked, 6 problems",
    ):
        assert text in output.err
    assert "task additions" in output.out


def test_check_counts_parameters_or_says_why_not(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"trainable": 1000, "total": 100_000, "source": "meta", "reason": None}
    module: Any = types.ModuleType("peftlab.modelling.counting")
    module.count_parameters = lambda _: types.SimpleNamespace(**counts)
    monkeypatch.setitem(sys.modules, "peftlab.modelling.counting", module)
    monkeypatch.setattr("peftlab.modelling.counting", module, raising=False)
    assert main(["check", experiment("lora/first")]) == 0
    assert "1,000 of 100,000 trainable (1 %)" in capsys.readouterr().out
    counts.update(trainable=None, reason="no config of 'org/tiny'")
    assert main(["check", "experiments/lora/first"]) == 0
    assert "not computable: no config of 'org/tiny'" in capsys.readouterr().out


def test_plugins_are_named_by_the_user(place: Path) -> None:
    import os

    folder = experiment("lora/first", parameters={**PARAMETERS, "generation": {"engine": "mine.engines:FAST"}})
    assert main(["check", "--no-model", folder, "--plugins", "mine"]) == 0
    assert os.environ["PEFTLAB_PLUGINS"] == "mine"


def test_check_without_anything_to_check(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 2
    assert "nothing to check" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- new


def fake_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("peftlab.defaults")
    module.default_adapter = lambda method, model: {"peft_type": method.upper(), "r": 8}
    module.check_layers = lambda config, model: None
    monkeypatch.setitem(sys.modules, "peftlab.defaults", module)
    monkeypatch.setattr("peftlab.defaults", module, raising=False)


def test_new_writes_a_folder_that_passes_check_and_never_overwrites(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_defaults(monkeypatch)
    words = ["new", "lora_dora", "mine", "--model", "org/tiny", "--task", "additions.yaml"]
    assert main(words) == 0
    folder = Path("experiments/lora_dora/mine")
    assert json.loads((folder / "adapter_config.json").read_text()) == {"peft_type": "LORA", "r": 8, "use_dora": True}
    resolved = loading.load(folder)
    assert (resolved.method, resolved.optim.learning_rate) == ("lora_dora", 1e-4)
    assert main(["check", "--no-model", str(folder)]) == 0
    before = (folder / "training_params.json").read_text()
    capsys.readouterr()
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert (folder / "training_params.json").read_text() == before


def test_new_full_writes_parameters_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "full", "mine", "--model", "org/tiny"]) == 0
    assert [file.name for file in Path("experiments/full/mine").iterdir()] == ["training_params.json"]
    assert "task=..." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["dora", "x"], "did you mean 'lora_dora'?"),
        (["loora", "x"], "did you mean 'lora'?"),
        (["full", "../x"], "cannot name an experiment"),
        (["full", "x", "--task", "gsm8kk"], "did you mean 'gsm8k'?"),
    ],
)
def test_new_refuses(place: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str) -> None:
    assert main(["new", *words]) == 2
    assert text in capsys.readouterr().err
    assert not Path("experiments").exists()


# ---------------------------------------------------------------------------------------------------------- listing


def test_list_settings_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {line.split()[0] for line in lines}
    for group, model in GROUPS.items():
        for name, field in model.model_fields.items():
            assert f"{group}.{name}" in names
            assert any((field.description or "") in line for line in lines)
    assert {"task", "seed"} <= names


def test_list_methods_is_pefts_own_list() -> None:
    import peft

    known = catalogue.methods()
    assert {str(one.value).lower() for one in peft.PeftType} | {"full"} <= set(known)
    for name in ("lora", "ia3", "full", "prompt_tuning", "prefix_tuning", "p_tuning", "adalora", "lora_dora", "hira"):
        assert known[name].learning_rate
        assert known[name].source
    with pytest.raises(UserError, match="lora_dora"):
        catalogue.method("dora")


def test_every_method_has_a_default_config_that_peft_knows() -> None:
    import peft

    from peftlab.defaults import default_adapter

    for facts in catalogue.methods().values():
        if facts.peft_type is None:
            continue
        config = {**default_adapter(facts.peft_type.lower(), None), **facts.adapter}
        assert json.loads(json.dumps(config)) == config
        assert not {*spec.BOOKKEEPING, "task_type"} & set(config)
        fields = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(facts.peft_type)].__dataclass_fields__
        assert set(config) <= set(fields), facts.name
    with pytest.raises(UserError, match="unknown method"):
        default_adapter("loora", None)


@pytest.mark.parametrize("what", ["tasks", "graders", "engines", "methods"])
def test_lists_print(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 1


def test_env_hides_secrets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PEFTLAB_MIRROR", "/data")
    monkeypatch.setenv("PEFTLAB_API_KEY", "hidden")
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert "/data" in text
    assert "hidden" not in text
    assert "PEFTLAB_API_KEY" not in text
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["torch"]
