"""A row of LLM-Adapters whose answer is true or false: see `_llm_adapters.yes_or_no`."""

from peftlab.tasks._llm_adapters import yes_or_no as convert

__all__ = ["convert"]
