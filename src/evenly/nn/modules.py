"""Names of an older version, under which layers were pickled: groupnorm and layernorm have them now."""

from evenly.nn.groupnorm import GroupNorm
from evenly.nn.layernorm import LayerNorm, RMSNorm

__all__ = ["GroupNorm", "LayerNorm", "RMSNorm"]
