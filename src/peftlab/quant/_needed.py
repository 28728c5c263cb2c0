"""Refuses a precision whose library is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from peftlab.errors import UserError


def needed(name: str, package: str) -> Callable[[str, str], None]:
    """The `check` of a plug-in that needs one package, whose extra is named as the plug-in is."""

    def check(scheme: str, device: str) -> None:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"quant.method = {name}-{scheme} needs {package}, which is not installed",
                fix=f"pip install 'peftlab[{name}]', or train on the base as it is: quant.method=null",
            )

    return check
