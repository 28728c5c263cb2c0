"""A row of MBPP: see `_code.described`."""

from peftlab.tasks._code import described as convert

__all__ = ["convert"]
