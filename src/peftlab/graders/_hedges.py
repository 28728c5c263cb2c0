"""Words that take an answer back, or set another beside it: pieces of the patterns by which strict modes refuse both.

It finds no answers. Modes that reproduce another system's parser do not use it: they hear no hedges.
"""

from __future__ import annotations

OR = r"(?:/|,|\bor\b|\band\b)"
"""What joins one answer to another that follows."""
UNSURE = r"(?:(?:maybe|perhaps|possibly|probably|even|rather|else|also|it|is|it's|may|might|could|be)\b[\s,]*)*"
"""What may stand between `or` and the other answer."""
DENIED = (
    r"[\s)\]}*_`\"'$,;:]*(?:(?:which|that|but\s+that|but\s+this|but\s+it)\s+)?"
    r"(?:is\s+(?:wrong|incorrect|never|not(?!\s+only))|was\s+(?:wrong|incorrect|not)|(?:is|was)n't|cannot|can't)\b"
)
"""Right after an answer, in its own sentence: that it is none."""
