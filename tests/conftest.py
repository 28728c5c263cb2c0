"""Settings of the whole test session: one thread, no network, a private cache, reproducible order."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from refusals import Place

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("PEFTLAB_PLUGINS", None)

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def shared_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, made once for all tests of a file."""
    import toy

    return toy.save_model(tmp_path_factory.mktemp("shared") / "model")


@pytest.fixture
def place(
    tmp_path: Path, shared_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Place:
    """A working folder with that model, in which commands are refused."""
    import refusals

    return refusals.working_place(tmp_path, shared_model, monkeypatch, capsys)
