"""peftlab: claims about parameter-efficient fine-tuning, made and checked.

The names below are loaded on first use: importing the package touches no device, network or file.

Example:
    >>> import peftlab
    >>> sorted(peftlab.__all__)[:3]
    ['Record', 'RunSpec', 'RunStore']
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftlab.config.loading import load, parse_overrides
    from peftlab.config.spec import RunSpec
    from peftlab.errors import UserError
    from peftlab.job.evaluating import evaluate
    from peftlab.job.runs import run
    from peftlab.records.record import Record
    from peftlab.records.store import RunStore
    from peftlab.verdicts.compare import compare

    __version__: str

for _talks in ("bitsandbytes", "torchao", "torch.utils._pytree"):  # peft imports these wherever they are installed
    logging.getLogger(_talks).setLevel(logging.ERROR)

__all__ = [
    "Record",
    "RunSpec",
    "RunStore",
    "UserError",
    "__version__",
    "compare",
    "evaluate",
    "load",
    "parse_overrides",
    "results",
    "run",
]

_HOMES = {
    "Record": "peftlab.records.record",
    "RunSpec": "peftlab.config.spec",
    "RunStore": "peftlab.records.store",
    "UserError": "peftlab.errors",
    "compare": "peftlab.verdicts.compare",
    "evaluate": "peftlab.job.evaluating",
    "load": "peftlab.config.loading",
    "parse_overrides": "peftlab.config.loading",
    "run": "peftlab.job.runs",
}


def results(folder: str = "results", task: str | None = None) -> list[Record]:
    """The records of a results folder, finished or not.

    Args:
        folder: Where `run` wrote them.
        task: Only the runs that were trained on this task.

    Example:
        >>> import peftlab
        >>> peftlab.results("no/such/folder")
        []
    """
    from peftlab.records.store import RunStore

    return [record for record in RunStore(folder).records() if task is None or record.task == task]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("peftlab")
    if name in _HOMES:
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch is loaded
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'peftlab' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
