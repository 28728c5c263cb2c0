"""Save and restore everything a step depends on, without pickle.

A checkpoint is `step-000050/` with `tensors.safetensors` and `state.json`, written beside its place and moved there
whole. It holds every trainable tensor, the optimizer's state, the position in the data, and whatever else of the model
changed since it was built (`bookkeeping.py`). Random states need no saving: they are derived from seed and step.
Where the optimizer's state is divided over processes, each writes its part, `part-0001.safetensors`, beside the rest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peftlab import measure
from peftlab.errors import UserError
from peftlab.loop.training import State
from peftlab.modelling import bookkeeping
from peftlab.modelling.models import Built
from peftlab.parallel import processes
from peftlab.parallel.split import Split
from peftlab.records.atomic import write_error
from peftlab.records.record import dumps, loads
from peftlab.rows.batching import Stream

TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
_TENSOR = "$tensor"


class Damaged(Exception):
    """A checkpoint that cannot be used: torn, altered, or incomplete."""


def name(step: int) -> str:
    """Folder name of a step."""
    return f"step-{step:06d}"


def existing(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, newest first."""
    found = [path for path in folder.glob("step-*") if path.suffix == "" and (path / STATE_FILE).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def save(
    folder: Path, built: Built, stream: Stream, state: State, reference: bookkeeping.Reference, *, keep: int
) -> Path:
    """Write the checkpoint of `state.step` below `folder` and remove all but the newest `keep`.

    Raises:
        OSError: The disk is full or not writable; earlier checkpoints are untouched.
    """
    target = folder / name(state.step)
    temporary = _writing(target)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with state.split.whole():
            plain, tensors = _content(built, stream, state, reference)
            save_file(_separate(tensors), str(temporary / TENSORS_FILE))
        plain["sha256"] = _sha256(temporary / TENSORS_FILE)
        plain["parts"] = _write_part(temporary, state)
        (temporary / STATE_FILE).write_text(dumps(plain), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    except SafetensorError as error:
        raise write_error(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in existing(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def join_in(folder: Path, state: State) -> None:
    """What the other processes do while the leader is in `save`: nothing, unless they hold parts of what is saved.

    Raises:
        OSError: The disk is full or not writable.
    """
    target = folder / name(state.step)
    with state.split.whole():
        pass
    try:
        _write_part(_writing(target), state)
    except SafetensorError as error:
        raise write_error(error, target) from error


def _writing(target: Path) -> Path:
    return target.with_name(f".{target.name}.writing")


def _content(
    built: Built, stream: Stream, state: State, reference: bookkeeping.Reference
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What one process can say of the state: plain data, and the tensors that they speak of."""
    tensors: dict[str, torch.Tensor] = {}
    optimizer = _optimizer_state(built, state) if state.split.name is None else None
    plain = {
        "step": state.step,
        "stream": stream.state(),
        "own_objective": state.own_objective,
        "best": state.best,
        "scaler": state.scaler.state_dict(),
        "environment": environment(built, stream),
        "start": _start(built),
        "divided_by": state.split.name,
        "optimizer": _pack(optimizer, tensors, "optimizer"),
        "attributes": _pack(bookkeeping.changed_attributes(built, reference), tensors, "attributes"),
        "method": _pack(dict(built.method.state(built.model)), tensors, "method") if built.method.state else None,
    }
    tensors.update({f"trained/{key}": value.detach() for key, value in built.trainable().items()})
    tensors.update({f"changed/{key}": value for key, value in bookkeeping.changed_tensors(built, reference).items()})
    return plain, tensors


def _write_part(temporary: Path, state: State) -> list[dict[str, Any]]:
    """All processes: each writes its part of the optimizer's state. Returns what the parts are, by rank."""
    if state.split.name is None:
        return []
    processes.agree(state.step, "the step of a checkpoint")  # the leader has made the folder
    tensors: dict[str, torch.Tensor] = {}
    plain = _pack(state.split.part(), tensors, "part")
    rank = processes.world().rank
    path = temporary / _part_file(rank)
    save_file(_separate(tensors), str(path))
    found = processes.merged({rank: {"plain": plain, "sha256": _sha256(path)}})
    return [found[number] for number in sorted(found)]


def _part_file(rank: int) -> str:
    return f"part-{rank:04d}.safetensors"


def restore(
    folder: Path,
    built: Built,
    stream: Stream,
    state: State,
    *,
    any_environment: bool = False,
) -> list[str]:
    """Restore the newest usable checkpoint below `folder` into freshly built objects; nothing to do at step 0.

    All processes of a launch call it, and come to the same step.

    Returns:
        Notes about damaged checkpoints that were passed over.

    Raises:
        UserError: The checkpoint was written under other versions, threads or device (unless `any_environment`), or its
            optimizer's state is divided in another way.
    """
    notes = []
    for path in existing(folder):
        try:
            plain, tensors = _read(path)
        except Damaged as error:
            notes.append(f"checkpoint {path.name} is damaged ({error}) and is passed over")
            continue
        if not any_environment:
            _same_environment(plain["environment"], environment(built, stream), path)
        _same_start(plain, built, path)
        part = _own_part(plain, path, state.split)
        with state.split.whole(write=True):
            _write_back(plain, tensors, built)
        if part is not None:
            state.split.take_part(part)
        else:
            _load_optimizer(built, state, _unpack(plain["optimizer"], tensors))
        state.scaler.load_state_dict(plain["scaler"])
        state.step, state.own_objective, state.best = plain["step"], plain["own_objective"], plain["best"]
        stream.restore(plain["stream"])
        return notes
    return notes


def environment(built: Built, stream: Stream) -> dict[str, Any]:
    """What the bytes of a step depend on besides the declared settings."""
    return {
        "versions": {**measure.versions(measure.RESUME_PACKAGES), **built.facts.get("quantised_with", {})},
        "threads": torch.get_num_threads(),
        "device": built.device.type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "world_size": stream.world_size,
    }


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        plain = loads((path / STATE_FILE).read_text(encoding="utf-8"))
        if _sha256(path / TENSORS_FILE) != plain["sha256"]:
            raise Damaged("its tensors were altered")
        for rank, part in enumerate(plain.get("parts", ())):  # all of them: the processes must not part here
            if _sha256(path / _part_file(rank)) != part["sha256"]:
                raise Damaged("its tensors were altered")
        return plain, load_file(str(path / TENSORS_FILE))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise Damaged(str(error)) from error


def _start(built: Built) -> str | None:
    """Digest of what the base's weights were made from, where the adapter's start changed them; that is not saved."""
    if not built.initial:
        return None
    whole = hashlib.sha256()
    for key, tensor in sorted(built.initial.items()):
        whole.update(key.encode())
        whole.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _same_start(plain: Mapping[str, Any], built: Built, path: Path) -> None:
    if plain.get("start") != _start(built):
        raise UserError(
            f"the checkpoint {path} belongs to an adapter that started from other values than it starts from here",
            fix="restore the cache folder and the environment that it started in, or start again with --rerun",
        )


def _same_environment(saved: Mapping[str, Any], here: Mapping[str, Any], path: Path) -> None:
    differing = [
        f"{package} {version} (now {here['versions'].get(package)})"
        for package, version in saved["versions"].items()
        if here["versions"].get(package) != version
    ]
    differing += [
        f"{key} {saved[key]} (now {here[key]})"
        for key in ("threads", "device", "cpu_capability", "world_size")
        if saved[key] != here[key]
    ]
    if differing:
        raise UserError(
            f"the checkpoint {path} was written with {', '.join(differing)}: resuming may not give the same bytes",
            fix="restore that environment, or resume all the same with --any-environment",
        )


def _own_part(plain: Mapping[str, Any], path: Path, split: Split) -> dict[str, Any] | None:
    """This process's part of the optimizer's state; None where nothing is divided."""
    before, parts = plain.get("divided_by"), plain.get("parts", [])
    here = processes.world()
    if before != split.name or (before is not None and len(parts) != here.size):
        was = f"{before} over {len(parts)} processes" if before else "an undivided optimizer"
        now = f"{split.name} over {here.size}" if split.name else "undivided"
        raise UserError(
            f"the checkpoint {path} was written with {was}, now it is {now}: its parts cannot be read",
            fix="start it as before (launch.deepspeed, launch.sharding, launch.num_processes), or afresh with --rerun",
        )
    if before is None:
        return None
    part: dict[str, Any] = _unpack(parts[here.rank]["plain"], load_file(str(path / _part_file(here.rank))))
    return part


def _write_back(plain: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], built: Built) -> None:
    trainable = built.trainable()
    trained = {key.removeprefix("trained/"): value for key, value in tensors.items() if key.startswith("trained/")}
    assert trained.keys() == trainable.keys(), "a checkpoint of the same key holds the same tensors"
    with torch.no_grad():
        for key, value in trained.items():
            trainable[key].copy_(value)
    changed = {key.removeprefix("changed/"): value for key, value in tensors.items() if key.startswith("changed/")}
    bookkeeping.write_back(built, changed, _unpack(plain["attributes"], tensors))
    if built.method.load_state is not None:
        built.method.load_state(built.model, _unpack(plain["method"], tensors))


def _optimizer_state(built: Built, state: State) -> dict[str, Any]:
    """The optimizer's state by parameter name, and its groups without the parameters.

    Some optimizers keep state under a text instead of a parameter: that stands apart, since the text may be a name too.
    """
    names = {id(parameter): key for key, parameter in built.trainable().items()}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state.optimizer.param_groups]
    by_parameter: dict[str, Any] = {}
    by_text: dict[str, Any] = {}
    for key, values in state.optimizer.state.items():
        if isinstance(key, torch.Tensor):
            by_parameter[names[id(key)]] = dict(values)
        else:
            by_text[str(key)] = dict(values)
    return {"state": by_parameter, "groups": groups, **({"by_text": by_text} if by_text else {})}


def _load_optimizer(built: Built, state: State, saved: Mapping[str, Any]) -> None:
    """Put a saved state into a freshly built optimizer, whose groups hold the same parameters in the same order."""
    groups = state.optimizer.param_groups
    numbers = {id(parameter): n for n, parameter in enumerate(one for group in groups for one in group["params"])}
    moments: dict[Any, Any] = {
        numbers[id(parameter)]: saved["state"][key]
        for key, parameter in built.trainable().items()
        if key in saved["state"]
    }
    for text, values in saved.get("by_text", {}).items():  # these the optimizer takes as they are
        moments[text] = {
            key: value.to(built.device) if isinstance(value, torch.Tensor) else value for key, value in values.items()
        }
    numbered = [
        {**plain, "params": [numbers[id(parameter)] for parameter in group["params"]]}
        for plain, group in zip(saved["groups"], groups, strict=True)
    ]
    state.optimizer.load_state_dict({"state": moments, "param_groups": numbered})


def _pack(value: Any, tensors: dict[str, torch.Tensor], path: str) -> Any:
    """Plain JSON of nested data; tensors move to `tensors` under their path."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach()
        return {_TENSOR: path}
    if isinstance(value, dict):
        return {key: _pack(item, tensors, f"{path}/{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(item, tensors, f"{path}/{index}") for index, item in enumerate(value)]
    return value


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: _unpack(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    return value


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for key, tensor in tensors.items():
        plain = tensor.to("cpu").contiguous()
        if plain.numel() and plain.data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.data_ptr())
        result[key] = plain
    return result


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
