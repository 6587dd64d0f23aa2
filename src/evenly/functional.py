"""The functions of the family under their public name: ``import evenly.functional as F``."""

from evenly.nn.functional import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from evenly.nn.mask import lengths_to_mask

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "lengths_to_mask", "rms_norm"]
