"""Write the golden files anew: `make golden`. Say in the commit why they had to change.

keys.json: spec -> keys; a key that changes orphans users' results. defaults.json: every setting with its default,
frozen baseline and key. losses.json: losses of small runs in full precision, per CPU and library versions.
record-1.json: one record per schema version, which must stay readable for ever (never rewritten once it exists).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import toy
from peftlab import measure
from peftlab.config import loading
from peftlab.config.groups import GROUPS
from peftlab.config.spec import RunSpec
from peftlab.job import runs
from peftlab.records.record import to_json
from peftlab.records.store import RunStore

FOLDER = Path(__file__).resolve().parent
EXPERIMENTS = FOLDER.parents[1] / "experiments"

CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"adapter": None},
    "ia3": {"adapter": {"peft_type": "IA3", "target_modules": ["v_proj"], "feedforward_modules": []}},
    "prompt": {"adapter": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}},
    "gpt2": {"architecture": "gpt2", "adapter": {"peft_type": "LORA", "r": 4, "target_modules": ["c_attn"]}},
    "bert": {"architecture": "bert", "adapter": {"peft_type": "LORA", "r": 4, "target_modules": ["query"]}},
}


def keys() -> dict[str, dict[str, str]]:
    """Keys of every shipped experiment, and of a few overrides of one on a hub model."""
    found = {}
    for file in sorted(EXPERIMENTS.glob("*/*/training_params.json")):
        found[f"{file.parent.parent.name}/{file.parent.name}"] = _keys(loading.load(file.parent))
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "lora" / "fixed"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps(toy.LORA))
        hub = {"task": "gsm8k", "model": {"id": "org/model", "revision": "abc"}}
        (folder / "training_params.json").write_text(json.dumps(hub))
        variants: list[dict[str, Any]] = [
            {},
            {"optim.learning_rate": 1e-3},
            {"generation.max_new_tokens": 9},
            {"train.eval_steps": 10, "train.load_best_model_at_end": True},
            {"data.train_rows": 100},
        ]
        for overrides in variants:
            found[f"hub {json.dumps(overrides)}"] = _keys(loading.load(folder, overrides=overrides))
        found["hub seed 1"] = _keys(loading.load(folder, seed=1))
    return found


def _keys(resolved: RunSpec) -> dict[str, str]:
    source = resolved.step_identity(resolved.train.max_steps or 0)
    return {
        "train": resolved.train_key,
        "arm": resolved.arm,
        "test": resolved.evaluation_key("test", source),
        "base": resolved.evaluation_key("test", resolved.base_identity()),
        "text": resolved.text_key(source),
        "method": resolved.method,
    }


def defaults() -> dict[str, Any]:
    """Every setting: default, baseline, key class."""
    found: dict[str, Any] = {}
    for group, model in GROUPS.items():
        for name, field in model.model_fields.items():
            extra = field.json_schema_extra
            assert isinstance(extra, dict)
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            found[f"{group}.{name}"] = {"default": default, "baseline": extra["baseline"], "key": extra["key"]}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def platform_name() -> str:
    """What the last digits of a loss depend on."""
    versions = measure.versions(measure.RESUME_PACKAGES)
    return " ".join([measure.environment()["cpu_capability"], *(f"{name} {value}" for name, value in versions.items())])


def losses() -> dict[str, list[float]]:
    """Losses of six steps of each case, on one thread."""
    torch.set_num_threads(1)
    found = {}
    for name, changes in CASES.items():
        with tempfile.TemporaryDirectory() as root:
            folder = toy.write_experiment(Path(root), **changes)
            resolved = loading.load(folder, overrides={"train.evaluate": "none"})
            record = runs.run(resolved, RunStore(Path(root) / "results"))
            found[name] = record.curve["loss"]
    return found


def golden_losses() -> dict[str, list[float]]:
    """The stored losses of whichever platform came first."""
    known: dict[str, dict[str, list[float]]] = json.loads((FOLDER / "losses.json").read_text())
    return next(iter(known.values()))


def write(name: str, content: Any) -> None:
    """Write one golden file."""
    (FOLDER / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Write all of them."""
    write("keys.json", keys())
    write("defaults.json", defaults())
    known = FOLDER / "losses.json"
    before = json.loads(known.read_text()) if known.exists() else {}
    write("losses.json", {**before, platform_name(): losses()})
    if not (FOLDER / "record-1.json").exists():
        with tempfile.TemporaryDirectory() as root:
            folder = toy.write_experiment(Path(root), train={"eval_steps": 3})
            record = runs.run(loading.load(folder), RunStore(Path(root) / "results"))
            text = to_json(record).replace(root, "/somewhere")
            (FOLDER / "record-1.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
