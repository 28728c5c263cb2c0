"""Lily: rows are scored one at a time, because peft's router averages over all tokens of a batch.

Zhong et al. 2025, Low-rank interconnected adaptation across layers (https://arxiv.org/abs/2407.09946). In peft's layer
the experts' weights are the mean of the routing probabilities over every position of every row, padding included: what
a row gets depends on the rows beside it. In training that is the method; a score must not depend on the batch size.
"""

from peftlab.protocols import Method

PLUGIN = Method(rows_alone=True)
