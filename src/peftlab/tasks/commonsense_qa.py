"""A row of CommonsenseQA: see `_llm_adapters.lettered`."""

from peftlab.tasks._llm_adapters import lettered as convert

__all__ = ["convert"]
