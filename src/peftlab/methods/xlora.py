"""X-LoRA: a trained mixture of LoRA adapters; saved with its experts and loaded again by peftlab.

Buehler and Buehler 2024 (https://arxiv.org/abs/2402.07148). peft's own save leaves tensors of the classifier out, or
loads them to no effect, so that a reload was silently another model. Here one file holds every tensor of classifier and
experts, the experts' own folders lie beside it, and loading it builds the same modules and fills all of them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from peftlab.errors import UserError
from peftlab.protocols import Method, find, names

_WEIGHTS, _CONFIG, _EXPERTS = "adapter_model.safetensors", "adapter_config.json", "experts"
_OURS = ("internal_xlora_classifier", ".lora_")


def wrap(base: Any, config: Any, make: Any = None) -> Any:
    """peft's own, on a base that keeps no cache, with experts that are there.

    Raises:
        UserError: No experts are named, or one of them is no saved adapter.
    """
    if str(config.task_type).endswith("SEQ_CLS"):
        raise UserError(
            "X-LoRA does not work on classification: peft cannot load experts that come with a classifier",
            fix="take a task whose answers are text",
        )
    if not config.adapters:
        raise UserError(
            "X-LoRA mixes trained adapters, and the config names none",
            fix='add "adapters": {"0": "results/.../adapter", "1": "..."} to adapter_config.json',
        )
    for name, path in config.adapters.items():
        _check_expert(name, path)
    width = base.config.hidden_size
    if config.hidden_size != width:
        raise UserError(f"hidden_size = {config.hidden_size}, but the model's is {width}", fix=f"set it to {width}")
    base.config.use_cache = False
    return make(config)


def _check_expert(name: str, place: str) -> None:
    """An expert is a saved adapter, as safetensors, that leaves the base as it is: it is not the only one on it.

    Raises:
        UserError: It is not.
    """
    if "/" not in place:  # not to be known as a path: the run's key would hold its name, not its content
        raise UserError(f"adapters: '{name}' = {place} is a name, not a path", fix=f"write ./{place}")
    path = Path(place)
    if not (path / _CONFIG).is_file():
        raise UserError(
            f"adapters: '{name}' = {place} is no saved adapter",
            fix="give folders of saved LoRA adapters; paths are relative to the current folder",
        )
    if not (path / _WEIGHTS).is_file():
        raise UserError(
            f"adapters: '{name}' = {path} has no {_WEIGHTS}; a pickle is not read", fix="save it as safetensors"
        )
    start = str(json.loads((path / _CONFIG).read_text(encoding="utf-8")).get("init_lora_weights")).lower()
    known = {other for other in names("starts") if start == other or start.startswith(f"{other}_niter_")}
    if any(find("starts", other).changes_base for other in known):
        raise UserError(
            f"adapters: '{name}' = {path} began as {start}, which changes the base's weights: the other experts "
            "would be on another base than their own",
            fix="give its plain form: the folder 'plain' beside it, or what save.output_dir got",
        )


def save(model: Any, folder: Path) -> None:
    """One file of all tensors of classifier and experts, the config, and the experts as they were given."""
    config = model.peft_config["default"]
    plain = config.to_dict()
    for number, (name, path) in enumerate(config.adapters.items()):
        target = folder / _EXPERTS / str(number)
        target.mkdir(parents=True, exist_ok=True)
        for file in (_CONFIG, _WEIGHTS):
            shutil.copyfile(Path(path) / file, target / file)
        plain["adapters"][name] = f"{_EXPERTS}/{number}"
    save_file({name: value.detach().contiguous() for name, value in _tensors(model).items()}, str(folder / _WEIGHTS))
    text = json.dumps(_plain(plain), indent=2, sort_keys=True)
    (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")


def load(base: Any, folder: Path) -> Any:
    """The same modules on a fresh base, with every tensor filled.

    Raises:
        UserError: The saved tensors are not those of the modules.
    """
    import peft

    values = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    values["adapters"] = {name: str(folder / path) for name, path in values["adapters"].items()}
    values.pop("peft_type")
    model = wrap(base, peft.XLoraConfig(**values), lambda config: peft.get_peft_model(base, config))
    saved, here = load_file(str(folder / _WEIGHTS)), _tensors(model)
    if saved.keys() != here.keys():
        raise UserError(f"{folder}: its tensors are not those of its config", fix="save it again")
    for name, value in saved.items():
        here[name].data.copy_(value)
    return model


def _tensors(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.named_parameters() if any(part in name for part in _OURS)}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """What can stand in the file: neither empty values nor objects of the library."""
    kept = {}
    for key, value in values.items():
        if isinstance(value, (bool, int, float, str, list, dict)):
            kept[key] = getattr(value, "value", value)
    return kept


PLUGIN = Method(
    wrap=wrap,
    save=save,
    load=load,
    no_checkpointing="the mixture is set for one forward pass, not for the pass that makes activations again",
)
