"""Parameter counts of an experiment without a download: on the meta device, from the model's config alone.

Where a method cannot be built from shapes, the real weights are counted if they are on disk; else the reason is given.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig

from peftlab.config import references
from peftlab.config.groups import ModelSettings
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.modelling import beginning, models
from peftlab.modelling.adapting import adapt
from peftlab.modelling.models import Base, Built, kind_of

SHAPES_FOLDER = Path(__file__).parent.parent / "shapes"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Parameter counts; `source` is `meta` (shapes only) or `real` (weights on disk); null counts carry a `reason`."""

    trainable: int | None
    total: int | None
    source: Literal["meta", "real"] | None
    reason: str | None = None


def count_parameters(spec: RunSpec) -> Counts:
    """Count without a download: on the meta device, else on the weights if they are on disk, else say why not.

    Raises:
        UserError: The adapter is wrong for the model (that is a finding, not "not computable").
    """
    kind = kind_of(spec)
    try:
        config = load_config(spec.model)
    except UserError as error:
        return Counts(trainable=None, total=None, source=None, reason=error.message)
    asked = beginning.asked(spec)
    unknown = asked.start.unknown_counts(spec.adapter or {}) if asked is not None else None
    if unknown is not None:
        without_weights(spec, config)
        return Counts(trainable=None, total=None, source=None, reason=unknown)
    try:
        return _counts(without_weights(spec, config), "meta")
    except UserError as error:
        if not _is_meta_trouble(error):
            raise
        reason = error.message
    except (RuntimeError, NotImplementedError, ImportError, AttributeError) as error:
        reason = str(error).splitlines()[0]
    if references.local_path(spec.model.id, spec.model.revision) is None:
        return Counts(trainable=None, total=None, source=None, reason=f"cannot be built on the meta device: {reason}")
    base = models.load(spec.model, kind, labels=spec.task.labels, quant=spec.quant)
    return _counts(adapt(base, spec, shapes_only=True), "real")


def without_weights(spec: RunSpec, config: Any = None) -> Built:
    """The adapted model on the meta device: shapes, and no weights.

    Raises:
        UserError: peft refuses the adapter, or the model's config is not at hand.
    """
    kind = kind_of(spec)
    config = config or load_config(spec.model)
    if kind == "classify":
        config.num_labels = max(len(spec.task.labels), 1)
    # Every decomposition takes float32, whatever the config says; float16 shows what would be trained in it.
    dtype = torch.float16 if spec.model.dtype == "float16" else torch.float32
    with torch.device("meta"):
        model = models.loader_of(kind).from_config(config, dtype=dtype)
        base = Base(model=model, tokenizer=None, kind=kind, stop_ids=(), facts={})
        return adapt(base, spec, shapes_only=True)


def _is_meta_trouble(error: UserError) -> bool:
    return "meta" in error.message.lower()


def _counts(built: Built, source: Literal["meta", "real"]) -> Counts:
    found = built.num_weights()
    return Counts(trainable=found["trainable"], total=found["total"], source=source)


def load_config(settings: ModelSettings) -> Any:
    """The model's config: the shapes that peftlab ships, its folder, or the hub's cache. Downloads nothing."""
    shipped = SHAPES_FOLDER / f"{settings.id.replace('/', '--').replace(':', '_')}.json"
    if shipped.is_file():
        plain = json.loads(shipped.read_text(encoding="utf-8"))
        return AutoConfig.for_model(plain.pop("model_type"), **plain)
    path = references.local_path(settings.id, settings.revision)
    offline = path is None
    try:
        if path is not None and path.is_file():  # a GGUF file: its header is enough
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        name, revision = models.source_of(settings)
        return AutoConfig.from_pretrained(
            name, revision=revision, local_files_only=offline, trust_remote_code=settings.trust_remote_code
        )
    except models.LOADING_ERRORS as error:
        if not offline:
            raise models.cannot_load("config", settings, error) from error
        raise UserError(
            f"no config of '{settings.id}' in the cache, a package or among the shipped shapes",
            fix="download the model once, or check with --no-model",
        ) from error
