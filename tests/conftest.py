"""Settings of the whole test session: one thread, no network, a private cache, reproducible order."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("PEFTLAB_PLUGINS", None)

sys.path.insert(0, str(Path(__file__).parent))
