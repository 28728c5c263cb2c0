"""What a dialect is: a foreign system's experiments and results, read and written as plain data.

The dialects themselves are plug-ins in `dialects/`; here is what they give and get. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """An experiment as it lies on disk, before anybody decided what its words mean.

    Attributes:
        path: The experiment's folder, or its single YAML file.
        parameters: Content of the parameter file or the YAML; None where a folder has no such file.
        adapter: Content of adapter_config.json, or None.
        where: What an error names as the place of a mistake.
        overrides: Settings that the command line will put over the translation, for values that depend on them.
    """

    path: Path
    parameters: Mapping[str, Any] | None
    adapter: Mapping[str, Any] | None
    where: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Native:
    """The same experiment in our own words: groups of settings, `task`, `seed`; peft's config; notes for the user.

    `unready` says what this version cannot do yet: such an experiment can be read and checked, not run.
    """

    parameters: Mapping[str, Any]
    adapter: dict[str, Any] | None
    notes: tuple[str, ...] = ()
    unready: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ForeignItems:
    """What a foreign result says of each item of an evaluation, in our own shape.

    Attributes:
        items: Item ids, in order.
        samples: Per item, what `samples.jsonl` holds.
        outcomes: Metric: one number an item.
    """

    items: Sequence[str]
    samples: Sequence[Mapping[str, Any]]
    outcomes: Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """A foreign format of experiments and results. Plain data in, plain data out; no torch.

    Attributes:
        recognises: (Foreign) -> whether it is written in this dialect; raises when two styles are mixed.
        to_native: (Foreign) -> Native.
        shared_files: Names of files that lie above experiments and are none themselves.
        export_result: (record as plain data, facts) -> a result in the foreign format; None: there is none.
        result_path: (foreign result) -> folder and file name that the foreign system gives it.
        export_files: (record as plain data, facts) -> path: text, where a run is several files; instead of these two.
            `facts["samples"]` is (evaluation) -> its samples.
        parse: (text of a file, where) -> foreign result; None: the file is one JSON object.
        import_result: (foreign result, where) -> a record as plain data. `created_at` may be None: the file's own time.
        import_items: (foreign result, where) -> evaluation key: ForeignItems; None: the format has scores only.
    """

    recognises: Callable[[Foreign], bool]
    to_native: Callable[[Foreign], Native]
    shared_files: tuple[str, ...] = ()
    export_result: Callable[..., Mapping[str, Any]] | None = None
    result_path: Callable[[Mapping[str, Any]], str] | None = None
    export_files: Callable[..., Mapping[str, str]] | None = None
    parse: Callable[[str, str], Mapping[str, Any]] | None = None
    import_result: Callable[..., Mapping[str, Any]] | None = None
    import_items: Callable[..., Mapping[str, ForeignItems]] | None = None
