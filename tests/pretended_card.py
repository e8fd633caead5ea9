"""A device that this machine lacks: values on the CPU, devices kept apart as CUDA keeps them.

Tensors on it are wrapped. What CUDA refuses is refused here too: a tensor of the card as an index of one on the host,
two operands on different devices (unless one is a number on the host), a generator of the other device, a conversion
to NumPy.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CARD = torch.device("meta")  # the one besides the CPU that torch serves without a driver, gradients included
_OPTIMIZERS = vars(sys.modules["torch.optim.optimizer"])
_aten = torch.ops.aten
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_NUMBERS = {Tensor.tolist, Tensor.item, Tensor.__int__, Tensor.__index__, Tensor.__float__, Tensor.__bool__}
_COPIES = {_aten.copy_.default, _aten._to_copy.default, _aten.lift_fresh.default}


class OnCard(Tensor):
    """A tensor of the card; ``host`` holds its values."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "OnCard":
        """Wrap values."""
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        made = Tensor._make_wrapper_subclass(cls, host.shape, device=CARD, requires_grad=False, **layout)
        made.host = host
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Read values as CUDA does: lists may be made of them, arrays may not."""
        if func in {Tensor.numpy, Tensor.__array__}:
            raise TypeError(f"can't convert {CARD} device type tensor to numpy. Use Tensor.cpu() first")
        if func in _NUMBERS:
            return func(args[0].host)
        if func is Tensor.__repr__:
            return f"OnCard({args[0].host!r})"
        if func is Tensor.__deepcopy__:
            copied = OnCard(args[0].host.clone()).requires_grad_(args[0].requires_grad)
            return torch.nn.Parameter(copied, copied.requires_grad) if hasattr(args[0], "_is_param") else copied
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation outside the block, too."""
        return _run(func, args, kwargs or {})


class _Generator(torch.Generator):
    """Makes a generator; those of the card are known by their address."""

    ours: ClassVar[dict[int, torch.Generator]] = {}

    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        made = torch._C.Generator("cpu")
        if torch.device(device).type == CARD.type:
            cls.ours[made._cdata] = made
        return made


class _Card(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Makes tensors of numbers on the host first: torch would ask the device's driver."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in {torch.tensor, torch.as_tensor} and torch.device(kwargs.get("device") or "cpu").type == CARD.type:
            return func(*args, **{**kwargs, "device": "cpu"}).to(CARD)
        return func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    wanted = kwargs.get("device")
    on_card = any(isinstance(t, OnCard) for t in tensors) if wanted is None else torch.device(wanted).type == CARD.type
    _see_devices(func, args, kwargs, tensors)
    if func in _COPIES and wanted is None:
        on_card = isinstance(args[0], OnCard)
    _see_generator(kwargs.get("generator"), on_card)
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*tree_map(_host, args), **tree_map(_host, kwargs))
    if func._schema.name.endswith("_"):  # what was changed in place
        return args[0] if func._schema.returns else None
    return tree_map(lambda t: _placed(t, on_card), found)


def _host(value: Any) -> Any:
    return value.host if isinstance(value, OnCard) else value


def _placed(value: Any, on_card: bool) -> Any:
    return OnCard(value) if on_card and isinstance(value, Tensor) and value.device.type == "cpu" else value


def _see_devices(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    """Refuse operands on different devices."""
    if func in _COPIES:
        return
    if func in _INDEXED:
        indices = [t for t in args[1] if isinstance(t, Tensor)]
        if not isinstance(args[0], OnCard) and any(isinstance(t, OnCard) for t in indices):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        tensors = [args[0], *(t for t in args[2:3] if isinstance(t, Tensor))]
    large = {isinstance(t, OnCard) for t in tensors if isinstance(t, OnCard) or t.dim() > 0}
    if len(large) > 1:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {CARD} and cpu")


def _see_generator(generator: torch.Generator | None, on_card: bool) -> None:
    if generator is not None and (generator._cdata in _Generator.ours) != on_card:
        raise RuntimeError(f"expected a {CARD if on_card else 'cpu'} device type for generator")


@contextmanager
def pretended_card(monkeypatch: Any) -> Iterator[torch.device]:
    """Let ``device=CARD`` work inside the block."""
    monkeypatch.setattr(torch, "Generator", _Generator)
    fused = _foreach_utils._get_fused_kernels_supported_devices()
    monkeypatch.setitem(_OPTIMIZERS, "_get_fused_kernels_supported_devices", lambda: [*fused, CARD.type])
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    try:
        with _Card(), _Made():
            yield CARD
    finally:
        _Generator.ours.clear()
