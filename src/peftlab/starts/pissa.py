"""PiSSA: the adapter begins as the principal singular triplets of each weight (Meng et al., https://arxiv.org/abs/2404.02948).

Reads no rows. peft decomposes; `<name>_niter_N` does it by a random subspace iteration of N rounds, on the run's seed.
"""

from __future__ import annotations

from peftlab.starts import _residual

PLUGIN = _residual.start()
