"""Models that cannot be loaded or found: exit code 2, a message with the way out, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import toy
from refusals import Place

Change = Callable[[Path], object]


# -------------------------------------------------------------------------------------------------------------- folders


def edited(name: str, **changes: Any) -> Change:
    def edit(model: Path) -> None:
        plain = {**json.loads((model / name).read_text()), **changes}
        (model / name).write_text(json.dumps({key: value for key, value in plain.items() if value is not None}))

    return edit


def without(pattern: str) -> Change:
    def remove(model: Path) -> None:
        for path in model.glob(pattern):
            path.unlink()

    return remove


def torn(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def an_encoder(model: Path) -> None:
    shutil.rmtree(model)
    toy.save_model(model, "bert")


MODELS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "no weights": (without("model.safetensors"), ("model.safetensors",)),
    "torn weights": (torn, ("model of model.id", "not fully covered")),
    "no config": (without("config.json"), ("model_type",)),
    "a torn config": (lambda model: (model / "config.json").write_text("{"), ("config.json", "not a valid JSON")),
    "a config that is a list": (lambda model: (model / "config.json").write_text("[]"), ("must be a mapping",)),
    "an unknown architecture": (edited("config.json", model_type="llamaa"), ("model type `llamaa`",)),
    "a width that is text": (edited("config.json", hidden_size="big"), ("'hidden_size' expected int",)),
    "heads that do not divide": (edited("config.json", num_attention_heads=5), ("number of attention heads (5)",)),
    "no tokenizer": (without("tokenizer*"), ("tokenizer of model.id",)),
    "an encoder for a task that generates": (an_encoder, ("are not in the weights", "no model that writes text")),
    "code of its own": (
        edited("config.json", model_type="odd", auto_map={"AutoConfig": "odd.Config"}),
        ("contains custom code", "say so on the command line: model.trust_remote_code=true"),
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_folder_that_holds_no_model(place: Place, case: str) -> None:
    change, says = MODELS[case]
    shutil.copytree(place.model, "model")
    change(Path("model"))
    folder = place.experiment(model={"id": "./model"})
    place.refuses("run", folder, says=("cannot load the", "'./model'", "fix: ", *says))


def test_a_tokenizer_without_an_end_token(place: Place) -> None:
    shutil.copytree(place.model, "model")
    edited("tokenizer_config.json", eos_token=None)(Path("model"))
    folder = place.experiment(model={"id": "./model"}, train={"evaluate": "none"})
    place.refuses("run", folder, says=("no end-of-sequence token", "set eos_token in the model's tokenizer_config"))


@pytest.mark.parametrize("template", ["{{ ", "{{ ''.__class__.__mro__ }}"])
def test_a_chat_template_that_fails(place: Place, template: str) -> None:
    shutil.copytree(place.model, "model")
    Path("model/chat_template.jinja").write_text(template)
    folder = place.experiment(model={"id": "./model"}, generation={"chat_template": True})
    place.refuses("run", folder, says=("generation.chat_template", "the template", "chat_template=false"))


# ----------------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nomodel", ("no folder at nomodel", "config.json and safetensors")),
        ("model", ("'model' may mean a hub id", "write ./model")),
        ("org/tiny", ("'org/tiny'", "offline, use a local folder")),
        ("", ("model.id ''",)),
        ("package:", ("'package:' names no file in a package", "package:<module>/<file or folder>")),
        ("package:nosuch/x", ("'package:nosuch/x'", "'nosuch' is not installed")),
        ("package:os/../../etc", ("'package:os/../../etc'", "'os' is a single module")),
        ("package:peft/../../../../../../etc/hostname", ("no such file in the package",)),
        ("package:escape/outside/secret.txt", ("'package:escape/outside/secret.txt'", "no such file in the package")),
        ("package:escape/inside.txt", ("'package:escape/inside.txt'", "no installed package is named 'escape'")),
    ],
)
def test_a_model_reference_that_leads_nowhere_or_outside(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, says: tuple[str, ...]
) -> None:
    Path("model").mkdir()
    Path("elsewhere").mkdir()
    Path("elsewhere/secret.txt").write_text("secret")
    package = Path("packages/escape")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "inside.txt").write_text("inside")
    (package / "outside").symlink_to(place.root / "elsewhere")
    monkeypatch.syspath_prepend(place.root / "packages")
    place.refuses("run", place.experiment(model={"id": name}), says=says)


def test_a_cache_that_cannot_be_written(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = Path("packages")
    (packages / "tiny_gguf").mkdir(parents=True)
    (packages / "tiny_gguf/__init__.py").write_text("")
    (packages / "tiny_gguf/tiny.gguf").write_bytes(b"GGUF")
    (packages / "tiny_gguf-1.0.dist-info").mkdir()
    (packages / "tiny_gguf-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(place.root / "packages")
    Path("file").write_text("")
    monkeypatch.setenv("PEFTLAB_CACHE", str(place.root / "file"))
    folder = place.experiment(model={"id": "package:tiny_gguf/tiny.gguf"})
    place.refuses("run", folder, says=("cannot write the cache folder", "set PEFTLAB_CACHE to a writable folder"))
    monkeypatch.setenv("PEFTLAB_CACHE", str(place.root / "cache"))
    place.refuses("run", folder, says=("tiny.gguf cannot be read as a GGUF model",))
