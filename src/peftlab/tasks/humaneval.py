"""A row of HumanEval: see `_code.function`."""

from peftlab.tasks._code import function as convert

__all__ = ["convert"]
