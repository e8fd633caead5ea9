"""A function of tensors, traced once to a graph of tensor operations and compiled.

Pyro's effect handlers are Python: they cost as much at every call as at the first. Here a program is run once, and
``make_fx`` records the operations that reach torch, without the effect handlers. Inductor compiles this record. The
graph draws from torch's own generators in the program's order, so it takes the same random numbers as the program.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrovae.internals import pyro as inside_pyro
from pyrovae.internals import torch as inside_torch
from pyrovae.internals.inductor import compile_graph, unchanged
from pyrovae.internals.torch import ALL
from pyrovae.programs.isolation import same_streams

Function = Callable[..., Sequence[Any]]
_LOOKING = {inside_pyro.LOOKING, inside_torch.LOOKING}


class CannotCompile(Exception):
    """A function that cannot be traced or compiled; the message says why in one line."""


def compiled(function: Function, inputs: Sequence[Tensor]) -> Function:
    """Trace ``function`` on ``inputs`` and compile it for tensors of the same shapes, strides and dtypes.

    The inputs are copied first, and the random state is restored afterwards. In-place changes of an input are part of
    the compiled function. Call the result without gradients.

    Args:
        function: function of tensors that returns a list of tensors, with None allowed in place of a tensor.
        inputs: an example of its arguments.

    Raises:
        CannotCompile: when the function branches on a value or uses what the compiler does not support.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # imported here: it takes seconds

    def watched(*tensors: Tensor) -> Sequence[Any]:
        with _WithoutValues():
            return function(*tensors)

    examples = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
    with same_streams(inputs[0].device), unchanged():
        try:
            with inside_pyro.without_looks_for_nan(), pyro.validation_enabled(False):
                graph = make_fx(watched, {torch.ops.aten.addmm.default: _bias_added_after})(*examples)
        except Exception as error:
            raise CannotCompile(f"it cannot be traced ({_reason(error)})") from error
        try:
            return compile_graph(graph, inputs)
        except Exception as error:
            raise CannotCompile(f"it cannot be compiled ({_reason(error)})") from error


class _WithoutValues(TorchFunctionMode):
    """Answers Pyro where it looks at values, so that none is needed while a program is traced.

    ``x.item()`` stays a tensor, so that a loss that is only reported stays in the graph. Pyro leaves terms of
    probability 0 out of an enumerated sum; here no term is left out, and such a term adds 0. Distributions that were
    made with validation on are not validated.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item and args[0].is_floating_point():
            return args[0].detach()
        if func in ALL and sys._getframe(1).f_globals.get("__name__") in _LOOKING:
            return True
        return func(*args, **(kwargs or {}))


def _bias_added_after(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """Compute ``torch.addmm`` so that Inductor fuses the sum with what follows.

    One single operation would copy the bias to every row first, which costs a pass through memory. The third axis keeps
    Inductor from joining the two operations into one again.
    """
    return (alpha * (left @ right).unsqueeze(0) + beta * bias).squeeze(0)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "get value out of a tracing tensor" in text or "data-dependent" in text:
        return "it branches on the value of a tensor"
    return f"{type(error).__name__}: {text[:160]}"
