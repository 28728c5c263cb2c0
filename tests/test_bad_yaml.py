"""Single YAML files, native and of dialect s1, that cannot be used: exit code 2, a way out, nothing run or left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import toy
from refusals import Place, left_behind

Write = Callable[[Place], None]


@pytest.fixture
def place(place: Place) -> Place:
    """With a task in it, whose rows a file may name."""
    place.task()
    return place


def foreign(place: Place, **changes: Any) -> dict[str, Any]:
    """A file of dialect s1 that works; `training__seed=1` changes a key of a section, a whole section is replaced."""
    plain: dict[str, Any] = {
        "task_name": "my_gsm8k",
        "task_type": "causal_lm",
        "model": {"name_or_path": str(place.model)},
        "peft": {"method": "lora", "lora_r": 4, "target_modules": ["q_proj", "v_proj"]},
        "dataset": {
            "name": "./task",
            "test_split": "test",
            "prompt_template": "{question} = {answer}",
            "max_length": 64,
        },
        "training": {"output_dir": "outputs/mine", "num_train_epochs": 1, "report_to": "none"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            plain[section] = {**plain[section], name: value}
        else:
            plain[section] = value
    return plain


def native(place: Place, **changes: Any) -> dict[str, Any]:
    """A native file that works."""
    return {
        "model": {"id": str(place.model)},
        "adapter": dict(toy.LORA),
        "task": "task/toy.yaml",
        "train": {"max_steps": 2},
        "data": {"forgetting": None, "max_length": 64},
    } | changes


def put(content: Any) -> Path:
    path = Path("mine.yaml")
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def test_the_same_files_without_a_mistake_run(place: Place) -> None:
    """What every refusal here starts from works; otherwise it would prove nothing."""
    assert "finished" in place.runs("run", put(native(place)))
    quick = ("data.forgetting=null", "generation.max_new_tokens=3", "model.dtype=float32")
    assert "finished" in place.runs("run", put(foreign(place)), *quick)
    assert (Path("outputs/mine") / "trainer_state.json").is_file()
    assert left_behind(place.root)


# ------------------------------------------------------------------------------------------------------------- YAML


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "code": (
        "model: {id: x}\ntask: !!python/object/apply:os.system ['touch owned']\n",
        ("mine.yaml is not valid YAML", "python/object/apply:os.system", "line 2"),
    ),
    "code in a foreign file": (
        "task_name: a\nmodel: {name_or_path: !!python/name:os.system }\n",
        ("mine.yaml is not valid YAML", "python/name:os.system"),
    ),
    "a tag of its own": ("model: !load {id: x}\n", ("mine.yaml is not valid YAML", "!load")),
    "tabs": ("model:\n\tid: x\n", ("mine.yaml is not valid YAML", "\\t", "line 2")),
    "a key twice": ("model: {id: x}\ntask: a\ntask: b\n", ("key 'task' is given twice", "line 3")),
    "a key twice within": ("training: {seed: 1, seed: 2}\n", ("key 'seed' is given twice",)),
    "a list": ("- model\n- task\n", ("mine.yaml holds no mapping",)),
    "nothing": ("", ("mine.yaml holds no mapping",)),
    "10 MB": ("# " + "x" * 10_000_000, ("mine.yaml is larger than 1000000 bytes", "really a config file?")),
    "Latin-1": ("task_name: caf\u00e9\n".encode("latin-1"), ("mine.yaml is not UTF-8",)),
    "UTF-16": ("task_name: x\n".encode("utf-16"), ("mine.yaml is not UTF-8",)),
    "an anchor to itself": ("model: &a {id: *a}\n", ("mine.yaml",)),
    "a bomb of anchors": (BOMB, ("unknown key",)),
}


@pytest.mark.parametrize(("content", "says"), TEXTS.values(), ids=TEXTS)
def test_a_file_that_cannot_be_read_as_meant(place: Place, content: str | bytes, says: tuple[str, ...]) -> None:
    path = put(content)
    place.refuses("run", path, says=says)
    assert not Path("owned").exists()


# ------------------------------------------------------------------------------------------------------- dialect s1


CLASSES = {"name": "./task", "text_column": "question", "label_column": "label"}
FOREIGN: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "two styles": ({"task": "toy"}, ("'task_name', 'task_type'", "beside 'task'", "one style")),
    "two styles, groups": ({"optim": {"learning_rate": 1e-3}}, ("beside 'optim'", "one style")),
    "a group's key in a section": ({"model__id": "x"}, ("unknown key 'model.id'",)),
    "an unknown key": ({"training__learing_rate": 1e-3}, ("'training.learing_rate'", "did you mean 'learning_rate'?")),
    "an unknown section": ({"acelerate": {}}, ("unknown key 'acelerate'; did you mean 'accelerate'?",)),
    "a key of the library that was never read": ({"training__push_to_hub": True}, ("'training.push_to_hub'",)),
    "a rate that is no number": ({"training__learning_rate": "fast"}, ("'training.learning_rate' = \"fast\"",)),
    "a rate of nothing": ({"training__learning_rate": 0}, ("'training.learning_rate' = 0", "greater than 0")),
    "half a row": ({"training__per_device_train_batch_size": 1.5}, ("'training.per_device_train_batch_size' = 1.5",)),
    "a section that is a list": ({"peft": ["lora"]}, ("'peft' = [\"lora\"]",)),
    "no output folder": ({"training": {"seed": 1}}, ("'training.output_dir' is required",)),
    "no task type": ({"task_type": None}, ("'task_type' is required", "classification or causal_lm")),
    "two task types": ({"peft__task_type": "SEQ_CLS"}, ("SEQ_CLS does not go with causal_lm",)),
    "a task type from elsewhere": ({"peft__task_type": "TOKEN_CLS"}, ("TOKEN_CLS has no counterpart here",)),
    "an unknown method": ({"peft__method": "loora"}, ("unknown method 'loora'", "did you mean 'lora'?")),
    "an unknown variant": ({"peft__variant": "dorra"}, ("unknown variant 'dorra'", "did you mean 'dora'?")),
    "an unknown start": ({"peft__init_lora_weights": "pisa"}, ("unknown start 'pisa'", "did you mean 'pissa'?")),
    "an adapter that is not trained": ({"peft__inference_mode": True}, ("'peft.inference_mode'", "trains nothing")),
    "an unknown optimizer": ({"training__optim": "adamw_torh"}, ("unknown optimizer", "did you mean 'adamw_torch'?")),
    "an unknown schedule": ({"training__lr_scheduler_type": "cosin"}, ("schedule 'cosin'", "did you mean 'cosine'?")),
    "two precisions": ({"training__fp16": True, "training__bf16": True}, ("'training.fp16' and 'training.bf16'",)),
    "8 and 4 bits": (
        {"model__quantization": {"load_in_8bit": True, "load_in_4bit": True}},
        ("'model.quantization' asks for 8 and for 4 bits",),
    ),
    "packing": ({"sft": {"packing": True}}, ("'sft.packing' = true",)),
    "a global batch that cannot be": ({"training__global_batch_size": 12}, ("= 12 is no multiple of 8", "divides")),
    "no template": ({"dataset": {"name": "./task"}}, ("'dataset.prompt_template' is missing",)),
    "a template without an answer": ({"dataset__prompt_template": "Q: {question}"}, ("then its answer, once",)),
    "an answer in the question": (
        {"dataset__prompt_template": "{answer} {question} {answer}"},
        ("then its answer, once",),
    ),
    "a template with an attribute": (
        {"dataset__prompt_template": "{question.__class__.__mro__} {answer}"},
        ("only plain fields like {question}", "{question.__class__.__mro__}"),
    ),
    "a template with an index": ({"dataset__prompt_template": "{question[0]} {answer}"}, ("only plain fields",)),
    "a template by position": ({"dataset__prompt_template": "{0} {answer}"}, ("only plain fields", "{0}")),
    "a template with a conversion": ({"dataset__prompt_template": "{question!r} {answer}"}, ("only plain fields",)),
    "a template with a width": ({"dataset__prompt_template": "{question:>99999999} {answer}"}, ("only plain fields",)),
    "a template that is not closed": ({"dataset__prompt_template": "{question {answer}"}, ("cannot be used",)),
    "a task that cannot name a result": ({"task_name": "../../up"}, ("'../../up' cannot name a result",)),
    "a placeholder": ({"model__name_or_path": "<your model>"}, ("filled in: model.name_or_path (<your model>)",)),
    "a slice beyond the data": (
        {"dataset__train_split": "train[:5000]"},
        ("split 'train[:5000]' reaches beyond the data: there are 40 rows",),
    ),
    "a slice that is none": ({"dataset__train_split": "train[a:b]"}, ("cannot read the split 'train[a:b]'",)),
    "a column that is not there": (
        {"dataset__prompt_template": "{qestion} = {answer}"},
        ("test.jsonl", "no column 'qestion'", "did you mean 'question'?"),
    ),
    "output above the current folder": ({"training__output_dir": "../up"}, ('output_dir = "../up" lies outside',)),
    "output by detours": ({"training__output_dir": "a/../../b"}, ("lies outside the current folder",)),
    "output in the root": ({"training__output_dir": "/tmp/somewhere"}, ("lies outside", "save.output_dir=")),
    "output at home": ({"training__output_dir": "~/somewhere"}, ("lies outside the current folder",)),
    "output onto other files": ({"training__output_dir": "task"}, ("files that are not of this run", "toy.yaml")),
    "a tracker that is none": ({"training__report_to": "tensorbord"}, ("tensorbord", "did you mean 'tensorboard'?")),
    "three texts": (
        {"task_type": "classification", "dataset": {**CLASSES, "text_column": ["a", "b", "c"]}},
        ("'dataset.text_column' must name one or two",),
    ),
}


@pytest.mark.parametrize(("changes", "says"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_with_a_mistake(place: Place, changes: dict[str, Any], says: tuple[str, ...]) -> None:
    place.refuses("run", put(foreign(place, **changes)), "data.forgetting=null", says=says)
    assert not Path("outputs").exists()


def test_a_dialect_asked_for_where_it_is_not_spoken(place: Place) -> None:
    folder = place.experiment()
    place.refuses("run", folder, "--dialect", "s1", says=("dialect s1 is written as one YAML file",))
    place.refuses("run", put(native(place)), "--dialect", "s1", says=("unknown key 'adapter'",))


def test_output_elsewhere_is_the_users_own_word(place: Place) -> None:
    elsewhere = place.root.parent / "elsewhere"
    path = put(foreign(place, training__output_dir="../up"))
    quick = ("data.forgetting=null", "generation.max_new_tokens=3", "model.dtype=float32", "train.evaluate=none")
    place.runs("run", path, f"save.output_dir={elsewhere}", *quick)
    assert (elsewhere / "adapter_model.safetensors").is_file() and not (place.root.parent / "up").exists()


def test_output_through_a_link_out_of_the_folder(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("outside")
    Path("out").symlink_to(elsewhere)
    for folder in ("out", "out/mine"):
        path = put(foreign(place, training__output_dir=folder))
        place.refuses("run", path, "data.forgetting=null", says=(f'"{folder}" lies outside the current folder',))
    Path("around").symlink_to("around")
    path = put(foreign(place, training__output_dir="around/mine"))
    place.refuses("run", path, "data.forgetting=null", says=("save.output_dir = around/mine: no files can be written",))
    Path("inside").symlink_to("task")
    path = put(foreign(place, training__output_dir="inside/mine"))
    place.refuses("run", path, "data.forgetting=null", "data.max_length=0", says=("data", "max_length"))
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", ["results", "temporary_results", "cancelled_results", "results/mine", "store"])
def test_output_into_the_results(place: Place, name: str) -> None:
    """Refused before anything is there, by the file's word and by the user's, also above or inside them."""
    results = "store/results" if name == "store" else "results"
    says = (f"save.output_dir = {name}: that is", "where results are kept")
    words = ("data.forgetting=null", "--results", results)
    place.refuses("run", put(foreign(place, training__output_dir=name)), *words, says=says)
    path = put(foreign(place))
    place.refuses("run", path, *words, f"save.output_dir={place.root / name}", says=says[1:])
    assert not Path("store").exists()


@pytest.mark.parametrize(
    ("folder", "why"),
    [("a_file/mine", "Not a directory"), ("a_file/much/deeper", "Not a directory"), ("x" * 300, "File name too long")],
    ids=["a file on the way", "further up", "too long a name"],
)
def test_output_that_cannot_be_written(place: Place, folder: str, why: str) -> None:
    Path("a_file").write_text("mine")
    before = sorted(place.root.iterdir())
    path = put(foreign(place, training__output_dir=folder))
    place.refuses("run", path, "data.forgetting=null", says=(f"save.output_dir = {folder}", "no files can be", why))
    assert sorted({*place.root.iterdir()} - {path.resolve(), place.root / "mine.yaml"}) == before


def test_a_checkpoint_of_another_run(place: Place) -> None:
    """Both runs are named; nothing of either is touched."""
    folder = place.experiment(train={"max_steps": 3, "evaluate": "none"})
    other = place.root / "results"
    payload = place.root / "cancelled_results" / "lora--toy--toy--seed0--0123456789ab"
    place.refuses("run", folder, "--resume_from_checkpoint", payload / "checkpoints", says=("no such folder",))
    place.refuses("run", folder, "--resume_from_checkpoint", "task", says=("task: this is no checkpoint of a run",))
    assert not other.exists()


# ------------------------------------------------------------------------------------------------------------ native


NATIVE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "an adapter that is a list": ({"adapter": ["lora"]}, ("'adapter' must be a mapping",)),
    "an adapter without a type": ({"adapter": {"r": 4}}, ("mine.yaml", "'peft_type' is required")),
    "an adapter with a wrong key": ({"adapter": {**toy.LORA, "lora_alfa": 3}}, ("mine.yaml", "lora_alfa")),
    "a misspelt group": ({"optm": {}}, ("unknown key 'optm'", "did you mean 'optim'?")),
    "the other style's word": (
        {"training": {"max_steps": 2}},
        ("'training'", "beside 'adapter', 'data', 'task'", "one style"),
    ),
    "a task with a mistake": ({"task": {"name": "x", "version": 1, "kind": "generat"}}, ("[task]", "'kind'")),
    "a task that is a list": ({"task": ["toy"]}, ("is no task",)),
    "output above the current folder": ({"save": {"output_dir": "../up"}}, ("lies outside the current folder",)),
    "output that is nothing": ({"save": {"output_dir": ""}}, ("is no folder",)),
}


@pytest.mark.parametrize(("changes", "says"), NATIVE.values(), ids=NATIVE)
def test_a_native_file_with_a_mistake(place: Place, changes: dict[str, Any], says: tuple[str, ...]) -> None:
    place.refuses("run", put(native(place, **changes)), says=says)


def test_check_goes_on_after_a_file_it_cannot_read(place: Place) -> None:
    """It names every mistake, passes over a launcher's file, and checks the rest."""
    Path("configs").mkdir()
    for name, content in (
        ("broken", "model: [\n"),
        ("good", yaml.safe_dump(foreign(place))),
        ("launcher", "distributed_type: NO\nnum_processes: 1\n"),
    ):
        (Path("configs") / f"{name}.yaml").write_text(content)
    files = sorted(Path("configs").glob("*.yaml"))
    text = place.refuses("check", *files, "--no-model", says=("broken.yaml is not valid YAML", "3 checked, 1 problem"))
    assert "configs--good--my_gsm8k" in text and "settings of a launcher" in text
    (Path("configs") / "deepspeed_config.json").write_text("{}")
    assert place.refuses("check", "configs", "--no-model", says=("3 checked, 1 problem",)) == text


def test_a_record_says_what_was_meant(place: Place) -> None:
    """Windows line ends and a byte order mark in a file change nothing."""
    content = yaml.safe_dump(native(place))
    place.runs("run", put(content))
    before = json.loads(place.record().read_text())
    put(b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
    assert "nothing computed" in place.runs("run", "mine.yaml")
    assert json.loads(place.record().read_text()) == before
