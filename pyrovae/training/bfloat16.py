"""Matrix products in bfloat16, everything else in float32."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.internals.torch import CONVOLUTION, tree_map

_LAYERS = (nn.Linear, nn.Bilinear, CONVOLUTION, nn.RNNBase, nn.MultiheadAttention)


@contextmanager
def bfloat16_layers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block the layers that multiply matrices do so in bfloat16, and return float32.

    Everything else stays in float32, above all every density.
    """
    candidates = dict.fromkeys(m for module in modules for m in module.modules())
    layers = [layer for layer in candidates if isinstance(layer, _LAYERS)]
    forwards = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.__dict__["forward"] = _in_bfloat16(layer.forward)
        yield
    finally:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.__dict__["forward"] = forward
            if forward is None:
                del layer.__dict__["forward"]


def _in_bfloat16(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        device = next(t.device.type for t in args if isinstance(t, Tensor))
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            return tree_map(_as_float32, forward(*args, **kwargs))

    return run


def _as_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
