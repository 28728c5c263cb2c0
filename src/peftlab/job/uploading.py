"""A run whose saved weights go to a storage bucket of the Hugging Face hub when it is done.

The run does not depend on it: what goes wrong with an upload is told, and the run stays finished. Tokens are the hub
library's business; none is read or shown here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.events import Event, Finished, Stage
from peftlab.job import runs
from peftlab.parallel import processes
from peftlab.records.record import Record
from peftlab.records.store import RunStore

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_TOKEN = re.compile(r"\bhf_\w+|(?<=[Bb]earer )\S+")


def check_bucket(name: str) -> str:
    """The name itself, when it can name a bucket.

    Raises:
        UserError: It is no USER/BUCKET.
    """
    if not _BUCKET.fullmatch(name):
        raise UserError(f"--bucket_name {name}: no bucket is named so", fix="write USER/BUCKET")
    return name


def events(spec: RunSpec, store: RunStore, options: runs.Options, *, bucket: str) -> Iterator[Event]:
    """As `runs.events`; before the end, the weights are uploaded. `options.clean` waits for that, and for its success.

    Raises:
        UserError: As `runs.events`, or a name that is no bucket's.
    """
    check_bucket(bucket)
    finished: Finished | None = None
    for event in runs.events(spec, store, dataclasses.replace(options, clean=False)):
        if isinstance(event, Finished):
            finished = event
        else:
            yield event
    assert finished is not None, "a run ends with Finished"
    if processes.world().leads:
        yield Stage(text=f"uploading the weights to {bucket}")
        problem = upload(store, finished.record, bucket)
        kept = "; the weights stay here" if problem and options.clean else ""
        yield Stage(
            text=f"not uploaded: {problem}{kept}" if problem else f"uploaded to {bucket}/{_prefix(finished.record)}"
        )
        if options.clean and problem is None:
            with store.claim(spec, category=finished.record.category) as slot:
                slot.clean()
    yield finished


def upload(store: RunStore, record: Record, bucket: str) -> str | None:
    """Send a run's saved weights to a bucket; returns why that failed, or None."""
    folder = store.folder_of(record) / "adapter"
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        return f"there are no saved weights at {folder}"
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        return f"{error} (pip install -U huggingface_hub)"
    http: Any = HfHubHTTPError.__bases__  # the errors of the library that it speaks HTTP with, and the system's
    try:
        api = HfApi()
        api.bucket_info(
            bucket
        )  # fails at once where there is no network or no such bucket; a transfer tries for minutes
        api.batch_bucket_files(bucket, add=[(path, _target(record, path, folder)) for path in files])
    except (*http, ValueError, RuntimeError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return _TOKEN.sub("***", lines[0])
    return None


def _prefix(record: Record) -> str:
    """Where a run's files lie in a bucket: under the name that its record has here."""
    return record.stem


def _target(record: Record, path: Path, folder: Path) -> str:
    return f"{_prefix(record)}/{path.relative_to(folder).as_posix()}"
