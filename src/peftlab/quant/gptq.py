"""GPTQ checkpoints (Frantar et al. 2022): read as they lie on disk. Needs the extra `gptq`. Not run so far."""

from peftlab.quant._checkpoints import calibrated

PLUGIN = calibrated("gptq", {"gptqmodel": "1.4.3", "optimum": "1.24.0"})
