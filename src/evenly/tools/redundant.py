"""Biases that a norm subtracts again: found by data flow, and removed."""

from __future__ import annotations

from collections import Counter

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from evenly.tools import walk
from evenly.tools.flow import read


def drop(block: nn.Module, model: nn.Module) -> list[str]:
    """Remove the redundant biases in one block; the names of the layers that had one.

    A bias is redundant where only a batch or instance norm over the channels reads the layer that
    adds it: the norm subtracts the mean, bias included. A running mean moves by the bias, so that
    evaluation gives what it gave.

    Args:
        block: whose forward calls layer and norm.
        model: in which neither the layer nor its bias may occur a second time.

    Raises:
        Unreadable: the block's data flow cannot be known.
    """
    if not any(_has_bias(layer) for layer in block.modules()):
        return []
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in read(block).graph.nodes:
        if node.op == "call_module":
            calls.setdefault(block.get_submodule(str(node.target)), []).append(node)
    layers = Counter(place.module for place in walk.places(model))
    biases = Counter(bias for module in layers for bias in module._parameters.values() if bias is not None)
    dropped = []
    for layer, nodes in calls.items():
        norm = _reader(nodes, block)
        if not isinstance(norm, _NormBase) or not _has_bias(layer) or layers[layer] > 1 or layer._forward_hooks:
            continue
        bias, mean = layer._parameters["bias"], norm._buffers["running_mean"]
        assert bias is not None
        if biases[bias] == 1 and _subtracts(norm, layer) and len(calls[norm]) == 1 and layers[norm] == 1:
            if mean is not None:
                with torch.no_grad():
                    mean -= bias.to(mean.dtype)
            layer.register_parameter("bias", None)
            dropped.append(str(nodes[0].target))
    return dropped


def _has_bias(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) and layer._parameters.get("bias") is not None


def _reader(nodes: list[fx.Node], block: nn.Module) -> nn.Module | None:
    """The module that alone reads the output of a layer that is called once."""
    if len(nodes) != 1 or len(nodes[0].users) != 1:
        return None
    (user,) = nodes[0].users
    alone = user.op == "call_module" and user.args == (nodes[0],) and not user.kwargs
    return block.get_submodule(str(user.target)) if alone else None


def _subtracts(norm: nn.Module, layer: nn.Module) -> bool:
    """Whether ``norm`` takes the mean out of each of ``layer``'s channels, in training."""
    if not isinstance(norm, _NormBase) or getattr(norm, "channel", 1) != 1:
        return False
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    # With fixed statistics the bias is a parameter like any other, unless the norm has one itself.
    fixed = getattr(norm, "frozen", False) and norm.bias is None
    return norm.num_features == channels and not fixed
