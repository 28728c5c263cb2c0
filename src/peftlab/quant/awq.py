"""AWQ checkpoints (Lin et al. 2023): read as they lie on disk. Needs the extra `awq`. Not run so far."""

from peftlab.quant._checkpoints import calibrated

PLUGIN = calibrated("awq", {"gptqmodel": "5.0.0"})
