"""TensorBoard: event files in the run's own folder, by the writer that comes with torch. Needs the extra `tensorboard`.

A resumed run writes another file beside the first; points after the step that it goes on from are purged.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.errors import UserError
from peftlab.protocols import Tracked, Tracker, TrackerSession

_FLUSH_SECONDS = 10


def _check() -> None:
    try:
        importlib.metadata.version("tensorboard")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "track.report_to: 'tensorboard' is not installed", fix="pip install 'peftlab[tensorboard]'"
        ) from None


def _open(run: Tracked) -> TrackerSession:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    purge = None if run.step is None else run.step + 1
    writer: Any = SummaryWriter(str(run.folder), purge_step=purge, flush_secs=_FLUSH_SECONDS)
    last = run.step or 0
    experiment, session, _ = hparams(dict(run.config), dict.fromkeys(run.results, 0.0))  # type: ignore[no-untyped-call]
    writer.file_writer.add_summary(experiment)
    writer.file_writer.add_summary(session)
    _write_text(writer, "tags", [f"{name}: {value}" for name, value in run.tags.items()], last)
    _write_text(writer, "config", ["\n".join(f"{name} = {value}" for name, value in run.config.items())], last)

    def numbers(step: int, figures: Mapping[str, float]) -> None:
        nonlocal last
        last = step
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    def texts(step: int, name: str, found: Sequence[str]) -> None:
        _write_text(writer, name, found, step)
        writer.flush()

    def close(status: str, error: str | None) -> None:
        _write_text(writer, "status", [status, *([error] if error else [])], last)
        writer.file_writer.add_summary(_session_end(finished=status == "finished"))
        writer.close()

    return TrackerSession(numbers=numbers, texts=texts, close=close)


def _write_text(writer: Any, name: str, texts: Sequence[str], step: int) -> None:
    """Texts as blocks of code, since the page would read them as Markdown."""
    blocks = ["    " + text.replace("\n", "\n    ") for text in texts]
    writer.add_text(name, "\n\n---\n\n".join(blocks), step)


def _session_end(*, finished: bool) -> Any:
    """The end of a session as the hyper-parameter page reads it; torch's own helper knows no failed runs."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.Status.Value("STATUS_SUCCESS" if finished else "STATUS_FAILURE")
    ending = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    content = plugin_data_pb2.HParamsPluginData(session_end_info=ending, version=metadata.PLUGIN_DATA_VERSION)
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString())
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=SummaryMetadata(plugin_data=plugin))
    return Summary(value=[value])


PLUGIN = Tracker(open=_open, check=_check)
