"""A row of Evol-Instruct-Code, or of HumanEval or MBPP: see `_code.either`."""

from peftlab.tasks._code import either as convert

__all__ = ["convert"]
