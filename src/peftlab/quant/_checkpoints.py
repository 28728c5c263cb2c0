"""Checkpoints that somebody quantised with calibration rows: they are loaded as they lie on disk, and only declared."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from peftlab.errors import UserError
from peftlab.protocols import Quantizer


def calibrated(name: str, packages: Mapping[str, str]) -> Quantizer:
    """The plug-in of a format, which transformers reads with `packages` (with the oldest version of each)."""

    def check(scheme: str, device: str) -> None:
        wanting = [f"{package}>={oldest}" for package, oldest in packages.items() if not _is_here(package, oldest)]
        if wanting:
            raise UserError(
                f"quant.method = {name}: reading such weights needs {' and '.join(wanting)}, not installed here",
                fix=f"pip install 'peftlab[{name}]', or the model's full-precision weights with quant.method=bnb-nf4",
            )

    def declares(stored: Mapping[str, Any]) -> Mapping[str, Any] | None:
        return {"method": name} if stored.get("quant_method") == name else None

    def prepare(model: Any) -> int:
        return sum("qweight" in dict(module.named_buffers(recurse=False)) for module in model.modules())

    return Quantizer(
        schemes={"": ()},
        packages=tuple(packages),
        makes=False,
        check=check,
        declares=declares,
        load_options=lambda scheme, quant, kept, device: {"device_map": {"": device}},
        prepare=prepare,
    )


def _is_here(package: str, oldest: str) -> bool:
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return _numbers(found) >= _numbers(oldest)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())
