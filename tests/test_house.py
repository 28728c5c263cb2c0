"""The rules of the house that a linter does not know: names, lengths, exceptions, and what an import may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import peftlab

ROOT = Path(peftlab.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "core", "base", "manager"}
MAY_CATCH_ALL = {"store.py", "tracking.py", "candidate.py", "checker.py"}
"""`store.claim` records how a run ended, and re-raises; a tracker that fails is said once and left out; a program that
a model wrote may raise anything, and that is its outcome."""

METHOD_NAMES = ("adalora", "lora_", "ia3", "prefix_tuning", "prompt_tuning", "gsm8k", "mrpc", "openbookqa", "smollm")
MAY_NAME_METHODS = ("methods", "tasks", "cli", "engines", "graders", "dialects", "trackers", "starts")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_names_lengths_and_docstrings(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES
    text = path.read_text(encoding="utf-8")
    assert text.isascii(), "ASCII only"
    assert len(text.splitlines()) <= 500, "split it"
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno <= 80, f"{node.name} is too long"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_only_named_boundaries_catch_everything(path: Path) -> None:
    caught = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
    ]
    assert not caught or path.name in MAY_CATCH_ALL, f"line {caught[0].lineno}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_method_task_or_model_is_named_in_the_machinery(path: Path) -> None:
    if path.parent != ROOT and path.relative_to(ROOT).parts[0] in MAY_NAME_METHODS:
        pytest.skip("plug-ins, data and help texts may")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    names += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    documents = {
        ast.get_docstring(node, clean=False)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
    }
    for found in [*names, *(strings - documents)]:
        # a sentence may use a method as its example; a bare name would steer something
        if " " not in found and not found.startswith("TRANSFORMERS_MODELS_TO_"):
            assert not any(name in found.lower() for name in METHOD_NAMES), found


def test_importing_peftlab_touches_nothing() -> None:
    code = (
        "import socket, sys\n"
        "socket.socket = None\n"
        "import peftlab\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
