"""A base model and its tokenizer, loaded in the declared precision; what a model ready for the loop is (`Built`).

The one place that talks to transformers' loaders. `adapting.py` puts adapters on.
"""

from __future__ import annotations

import inspect
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.utils import CONFIG_NAME, cached_file, extract_commit_hash
from transformers.utils import logging as transformers_logging

from peftlab.config import references
from peftlab.config.groups import ModelSettings, QuantSettings
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.modelling import precision, randomness
from peftlab.modelling.conversion import converted_gguf
from peftlab.protocols import Method
from peftlab.records.slot import ran_out_of_memory

transformers_logging.disable_progress_bar()

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
        initial: Tensors that the base's weights are made from again, where the adapter's start changed them.
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
    initial: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def pad_id(self) -> int:
        """The id that fills padding; the attention mask, not the id, says what is padding."""
        return pad_id_of(self.tokenizer)

    def num_weights(self) -> dict[str, int]:
        """How many weights are trained, and how many there are; packed ones count as what they stand for."""
        return {
            "trainable": sum(parameter.numel() for parameter in self.trainable().values()),
            "total": sum(precision.num_weights(parameter) for parameter in self.model.parameters()),
        }

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name, in the model's order."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}


def pad_id_of(tokenizer: Any) -> int:
    """The id that fills padding: the tokenizer's own, else that of the end of a text."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def kind_of(spec: RunSpec) -> Kind:
    """Which head the task needs."""
    return "classify" if spec.task.has_head else "causal"


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
    settings: ModelSettings,
    kind: Kind,
    *,
    labels: tuple[str, ...] = (),
    seed: int = 0,
    weights: Path | None = None,
    quant: QuantSettings | None = None,
) -> Base:
    """Load weights and tokenizer in the declared precision; `quant` says where the frozen weights have fewer bits.

    A new head (one number where there are no `labels`) starts from the stream `adapter` of `seed`. Token rows that the
    tokenizer has and the model lacks are added as the mean of the others, so that they do not depend on a seed.
    `weights` names a folder of trained weights to load in place of the model's own.

    Raises:
        UserError: Not found, not reachable, not a model of the kind that the task needs, or stored in a precision that
            was not declared.
    """
    use_arithmetic(settings)
    tokenizer = load_tokenizer(settings)
    name, revision = source_of(settings) if weights is None else (str(weights), None)
    plan = _plan(settings, quant or QuantSettings(), kind, name, revision)
    extra: dict[str, Any] = {}
    if kind == "classify":
        extra = _head_of(labels)
    if settings.attn_implementation is not None:
        extra["attn_implementation"] = settings.attn_implementation
    try:
        with randomness.seeded(seed, "adapter", "head"):
            model, loading = loader_of(kind).from_pretrained(
                name,
                revision=revision,
                dtype=_DTYPES[settings.dtype],
                trust_remote_code=settings.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **extra,
                **(plan.options if plan else {}),
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
        **(plan.prepare(model) if plan else {}),
    }
    model.to(default_device())
    stop_ids = _stop_ids(model, tokenizer, None if weights is None else source_of(settings))
    return Base(model=model, tokenizer=tokenizer, kind=kind, stop_ids=stop_ids, facts=facts)


def _plan(
    settings: ModelSettings, quant: QuantSettings, kind: Kind, name: str, revision: str | None
) -> precision.Plan | None:
    """How weights of few bits are loaded; looks at the model's config and at shapes."""
    code = settings.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=code)
        if quant.method is None and precision.stored(config) is None:
            return None
        with torch.device("meta"):
            skeleton = loader_of(kind).from_config(config, trust_remote_code=code)
    except LOADING_ERRORS as error:
        raise cannot_load("model", settings, error) from error
    return precision.plan(quant, skeleton, default_device().type, model_id=settings.id)


def _head_of(labels: tuple[str, ...]) -> dict[str, Any]:
    """What a head is told: its classes, or that it gives one number."""
    if not labels:
        return {"num_labels": 1, "problem_type": "regression"}
    by_name = {label: index for index, label in enumerate(labels)}
    return {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "label2id": by_name}


def loader_of(kind: Kind) -> Any:
    """What makes models with the head that a task needs."""
    return AutoModelForSequenceClassification if kind == "classify" else AutoModelForCausalLM


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


# -------------------------------------------------------------------------------------------------------- built


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
