"""Base model + tokenizer + adapter (or full fine-tuning) to one `Built`; saving what was trained and loading it again.

The one place that talks to transformers' loaders and to peft. Trains nothing, evaluates nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig
from transformers.utils import CONFIG_NAME, cached_file, extract_commit_hash
from transformers.utils import logging as transformers_logging

from peftlab import randomness, references
from peftlab.conversion import converted_gguf
from peftlab.errors import UserError, nearest, unknown_name
from peftlab.groups import ModelSettings
from peftlab.protocols import Method, find, names
from peftlab.slot import ran_out_of_memory
from peftlab.spec import ADAPTER_FILE, BOOKKEEPING, RunSpec, method_name

transformers_logging.disable_progress_bar()
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it wherever it is installed

Kind = Literal["causal", "classify"]
TASK_TYPES: Mapping[str, str] = {"causal": "CAUSAL_LM", "classify": "SEQ_CLS"}
UNKNOWN_BUDGET = 1_000_000
"""Steps that a schedule is built for while nobody has counted the rows; such an adapter is looked at, not trained."""
LOADING_ERRORS = (
    OSError,
    ValueError,
    ImportError,
    RuntimeError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    struct.error,
    pickle.UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)
"""What the libraries raise for a folder that is no model; none has one type for it."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model as loaded, before any adapter; `facts` says what was really loaded (revision, added token rows)."""

    model: Any
    tokenizer: Any
    kind: Kind
    stop_ids: tuple[int, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model ready for the loop or for evaluation.

    Attributes:
        base_names: Names (in `model`) of the parameters that were there before the adapter.
        equal_lengths: Batches for generation must not be padded: the method drops position ids, or the model has none.
        trims_logits: The model's forward takes `logits_to_keep`.
    """

    model: Any
    tokenizer: Any
    kind: Kind
    stop_ids: tuple[int, ...]
    method: Method
    adapter: Any
    base_names: frozenset[str]
    equal_lengths: bool
    trims_logits: bool
    facts: Mapping[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def pad_id(self) -> int:
        """The id that fills padding; the attention mask, not the id, says what is padding."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name, in the model's order."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}


def kind_of(spec: RunSpec) -> Kind:
    """Which head the task needs."""
    return "classify" if spec.task.kind == "classify" else "causal"


def default_device() -> torch.device:
    """The first accelerator, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


# ------------------------------------------------------------------------------------------------------- loading


def source_of(settings: ModelSettings) -> tuple[str, str | None]:
    """What to hand to `from_pretrained`: a folder (a GGUF file is converted once), or a hub id with its revision."""
    path = references.local_path(settings.id, settings.revision)
    if path is None:
        return settings.id, settings.revision
    if path.is_file():
        return str(converted_gguf(path)), None
    return str(path), None


def commit_of(settings: ModelSettings) -> str | None:
    """The commit that a hub model's revision means in the local cache, which is where it was just loaded from.

    None for a model that lies in no cache of the hub.
    """
    if references.local_path(settings.id, settings.revision) is not None:
        return None
    try:
        path = cached_file(settings.id, CONFIG_NAME, revision=settings.revision, local_files_only=True)
    except OSError:
        return None
    found: str | None = extract_commit_hash(path, None)
    return found


def use_arithmetic(settings: ModelSettings) -> None:
    """Set the process-wide precision of float32 products; asked for again at each step, as runs may alternate."""
    torch.set_float32_matmul_precision(settings.matmul_precision)


def load_tokenizer(settings: ModelSettings) -> Any:
    """The model's tokenizer, as its authors configured it.

    Raises:
        UserError: It cannot be had.
    """
    name, revision = source_of(settings)
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=settings.trust_remote_code)
    except LOADING_ERRORS as error:
        raise cannot_load("tokenizer", settings, error) from error


def load(
    settings: ModelSettings, kind: Kind, *, labels: tuple[str, ...] = (), seed: int = 0, weights: Path | None = None
) -> Base:
    """Load weights and tokenizer in the declared precision.

    A new classification head starts from the stream `adapter` of `seed`. Token rows that the tokenizer has and the
    model lacks are added as the mean of the others, so that they do not depend on a seed. `weights` names a folder of
    trained weights to load in place of the model's own.

    Raises:
        UserError: Not found, not reachable, or not a model of the kind that the task needs.
    """
    use_arithmetic(settings)
    tokenizer = load_tokenizer(settings)
    name, revision = source_of(settings) if weights is None else (str(weights), None)
    extra: dict[str, Any] = {}
    if kind == "classify":
        extra = {"num_labels": max(len(labels), 1), "id2label": dict(enumerate(labels))}
        extra["label2id"] = {label: index for index, label in enumerate(labels)}
    if settings.attn_implementation is not None:
        extra["attn_implementation"] = settings.attn_implementation
    loader = AutoModelForSequenceClassification if kind == "classify" else AutoModelForCausalLM
    try:
        with randomness.seeded(seed, "adapter", "head"):
            model, loading = loader.from_pretrained(
                name,
                revision=revision,
                dtype=_DTYPES[settings.dtype],
                trust_remote_code=settings.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **extra,
            )
    except LOADING_ERRORS as error:
        if ran_out_of_memory(error):
            raise
        raise cannot_load("model", settings, error) from error
    if kind == "causal" and loading["missing_keys"]:
        absent = sorted(loading["missing_keys"])
        reason = f"{len(absent)} of its tensors are not in the weights, the first is {absent[0]}"
        raise cannot_load("model", settings, ValueError(f"{reason}; is it no model that writes text?"))
    facts = {
        "revision": commit_of(settings) or settings.revision,
        "pinned": references.is_commit(settings.revision) or references.local_path(settings.id, None) is not None,
        **_prepare(model, tokenizer, kind),
    }
    model.to(default_device())
    stop_ids = _stop_ids(model, tokenizer, None if weights is None else source_of(settings))
    return Base(model=model, tokenizer=tokenizer, kind=kind, stop_ids=stop_ids, facts=facts)


def _prepare(model: Any, tokenizer: Any, kind: Kind) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        facts["added_token_rows"] = len(tokenizer) - rows
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                if layer is not None:
                    layer.weight[rows:] = layer.weight[:rows].mean(dim=0)
    if kind == "classify":  # heads of decoders look for the last token before the padding by this id
        model.config.pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        )
    return facts


def _stop_ids(model: Any, tokenizer: Any, declared: tuple[str, str | None] | None) -> tuple[int, ...]:
    """Ids that end an answer. The model's other generation defaults (sampling, penalties) are dropped on purpose.

    For weights that we saved, they are those of the `declared` model: ours are saved without generation defaults.
    """
    ids: set[int] = set()
    generation = getattr(model, "generation_config", None)
    if declared is not None and generation is not None:
        try:
            generation = GenerationConfig.from_pretrained(declared[0], revision=declared[1])
        except OSError:
            generation = GenerationConfig.from_model_config(model.config)
    for source in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        ids.update(source if isinstance(source, list) else [source] if source is not None else [])
    if generation is not None:
        model.generation_config = GenerationConfig()
    return tuple(sorted(ids))


def cannot_load(what: str, settings: ModelSettings, error: Exception) -> UserError:
    """What a library says of a model that it cannot load, with the fix that fits its words."""
    reason = " ".join(str(error).split())[:400] or type(error).__name__
    fix = "check the id and revision; offline, use a local folder or a package: reference"
    if references.is_local(settings.id):
        fix = "give a folder with config.json, tokenizer files and safetensors weights"
    if "trust_remote_code" in reason:
        fix = "if you trust that code, say so on the command line: model.trust_remote_code=true"
    if "attn_implementation" in reason:
        fix = "set model.attn_implementation to sdpa, eager or null"
    return UserError(f"cannot load the {what} of model.id '{settings.id}': {reason}", fix=fix)


# ------------------------------------------------------------------------------------------------------ adapting


def adapter_place(spec: RunSpec) -> str:
    """Where an error finds the adapter's config: a file of its own, or a part of the experiment's YAML."""
    place = Path(spec.folder)
    return f"{place} [adapter]" if place.is_file() else str(place / ADAPTER_FILE)


def adapter_config(
    adapter: Mapping[str, Any], kind: Kind, *, max_steps: int, where: str = ADAPTER_FILE
) -> tuple[Any, list[str]]:
    """The peft config of an experiment, and the unknown empty keys that were dropped.

    Raises:
        UserError: An unknown peft type, an unknown key that says something, a config of another task type, or
            values that peft refuses.
    """
    import peft

    mapping = {str(peft_type.value): cls for peft_type, cls in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    peft_type = str(adapter["peft_type"]).upper()
    if peft_type not in mapping:
        raise unknown_name("peft_type", str(adapter["peft_type"]), mapping, where=where)
    config_class = mapping[peft_type]
    known = {field.name for field in dataclasses.fields(config_class)}
    values, dropped = {}, []
    for key, value in adapter.items():
        if key in BOOKKEEPING or key == "peft_type":
            continue
        if key in known:
            values[key] = value
        elif value in (None, False, {}, []):
            dropped.append(key)
        else:
            guess = nearest(key, known)
            raise UserError(
                f"{where}: {peft_type} has no setting '{key}' (= {json.dumps(value)[:60]})",
                fix=f"did you mean '{guess}'?" if guess else f"settings: {', '.join(sorted(known))}",
            )
    wanted = TASK_TYPES[kind]
    if values.get("task_type") not in (None, wanted):
        raise UserError(
            f"{where}: task_type is {values['task_type']}, but the task needs {wanted}",
            fix="remove 'task_type' (it is filled in) or choose another task",
        )
    values["task_type"] = wanted
    if "total_step" in known and values.get("total_step") is None:
        values["total_step"] = max_steps
    try:
        return config_class(**values), dropped
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{where}: peft refuses this config: {error}", fix="mend the value named") from error


def method_of(adapter: Mapping[str, Any] | None) -> Method:
    """The plug-in for a method's special needs: `<peft_type>_<variant>`, then `<peft_type>`, else peft's own way."""
    name = method_name(adapter)
    known = names("methods")
    for candidate in (name, name.split("_")[0] if adapter is None else str(adapter["peft_type"]).lower()):
        if candidate in known:
            plugin: Method = find("methods", candidate)
            return plugin
    return Method()


def adapt(base: Base, spec: RunSpec, *, calibration: Any = None, total_steps: int | None = None) -> Built:
    """Put the experiment's adapter on the base (or free all weights for full fine-tuning), seeded by stream `adapter`.

    Raises:
        UserError: peft refuses the config for this model.
    """
    import peft

    method = method_of(spec.adapter)
    before = {id(parameter) for parameter in base.model.parameters()}
    model: Any = base.model
    config: Any = None
    dropped: list[str] = []
    if spec.adapter is None:
        model.requires_grad_(True)
    else:
        where = adapter_place(spec)
        config, dropped = adapter_config(
            spec.adapter, base.kind, max_steps=total_steps or spec.train.max_steps or UNKNOWN_BUDGET, where=where
        )
        with randomness.seeded(spec.seed, "adapter"), quiet_peft():
            try:
                if method.wrap is not None:
                    model = method.wrap(base.model, config, calibration)
                else:
                    model = peft.get_peft_model(
                        base.model, config, autocast_adapter_dtype=spec.model.autocast_adapter_dtype
                    )
            except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
                if ran_out_of_memory(error):
                    raise
                raise _refused(error, base.model, config, where) from error
    if spec.model.gradient_checkpointing:
        with quiet_peft():
            base.model.enable_input_require_grads()
            base.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if spec.model.compile:
        torch._inductor.config.force_disable_caches = True  # else the second run of a comparison gets its compile free
        model.compile(dynamic=True)
    base_names = frozenset(name for name, parameter in model.named_parameters() if id(parameter) in before)
    facts = {**base.facts, "dropped_adapter_keys": dropped}
    built = built_on(base, model, config, method, base_names, facts)
    if not built.trainable():
        raise UserError("nothing is trainable in this experiment", fix="check the adapter's target_modules")
    return built


def built_on(
    base: Base, model: Any, config: Any, method: Method, base_names: frozenset[str], facts: Mapping[str, Any]
) -> Built:
    """A `Built` of a module on a base, with what its forward takes found out."""
    inputs = set(inspect.signature(base.model.forward).parameters)
    return Built(
        model=model,
        tokenizer=base.tokenizer,
        kind=base.kind,
        stop_ids=base.stop_ids,
        method=method,
        adapter=config,
        base_names=base_names,
        equal_lengths=bool(config is not None and config.is_prompt_learning) or "position_ids" not in inputs,
        trims_logits="logits_to_keep" in inputs,
        facts=facts,
    )


def bare(base: Base) -> Built:
    """The base itself as a `Built`, for scoring the starting model."""
    names = frozenset(name for name, _ in base.model.named_parameters())
    return built_on(base, base.model, None, Method(), names, base.facts)


def _refused(error: Exception, model: nn.Module, config: Any, where: str) -> UserError:
    """peft's words, and as the fix what they are about: a value of the wrong type, the layers, or the value named."""
    reason = str(error).splitlines()[0][:400] if str(error) else type(error).__name__
    wrong = _wrong_types(config)
    fix = f"mend {', '.join(wrong or _meant(config, reason)) or 'the value that peft names'}"
    if not wrong and "target" in reason.lower():
        layers = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        fix += f"; linear layers of this model: {', '.join(sorted(layers))}"
    return UserError(f"{where}: peft refuses this adapter for this model: {reason}", fix=fix)


def _wrong_types(config: Any) -> list[str]:
    """Values that are no number (or no whole one) where the setting's default is."""
    found = []
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        if type(default) not in (int, float) or value is None:
            continue
        if type(value) not in ((int,) if isinstance(default, int) else (int, float)):
            found.append(f"'{field.name}' (= {json.dumps(value, default=str)[:60]}, by default {default})")
    return found


def _meant(config: Any, reason: str) -> list[str]:
    """Settings that peft's words are about: their names stand in them (underscores or not), or else their numbers."""

    def stands(words: str) -> bool:
        return re.search(rf"\b{words}\b", reason, re.IGNORECASE) is not None

    given = {name: value for name, value in vars(config).items() if value is not None}
    found = [name for name in given if stands("[ _]".join(map(re.escape, name.split("_"))))]
    if not found:
        numbers = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
        found = [
            name for name, many in numbers.items() if any(type(n) is int and n > 1 and stands(str(n)) for n in many)
        ]
    return [f"'{name}' (= {json.dumps(given[name], default=sorted)[:60]})" for name in found]


class quiet_peft(warnings.catch_warnings):
    """peft warns of its own housekeeping (a renamed base path, a type hint); what matters we check ourselves."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", module=r"peft\..*")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")
        return entered
