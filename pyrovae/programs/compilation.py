"""A function of tensors, traced once to a graph of tensor operations and compiled.

Pyro's effect handlers are Python: they cost as much at every call as at the first. Here a program is run once while
``make_fx`` notes the operations that reach torch, effect handlers and all gone; Inductor compiles what was noted. The
graph draws from torch's own generators in the program's order, so that it takes the same random numbers as the program.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.util
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyrovae.programs.isolation import same_streams

Function = Callable[..., Sequence[Any]]
COMPILE_SECONDS = 20.0  # that tracing and compiling take, on two CPU cores with a cold cache
START = {"cpu": 4e-6, "cuda": 2.6e-5}  # seconds that an operation's start takes, in Python and in torch
PASS = {"cpu": 5e-10, "cuda": 0.0}  # seconds that a pass through memory takes, a number written


class CannotCompile(Exception):
    """A function that cannot be traced or compiled; the message says why in one line."""


class State:
    """Every tensor that programs read besides their batch: parameters and buffers of modules, and bare parameters.

    Args:
        modules: that the programs use.
        bare: unconstrained values of bare ``pyro.param``s, by name.
        constraints: of the bare parameters, by name.
    """

    def __init__(
        self, modules: Iterable[nn.Module], bare: Mapping[str, Tensor], constraints: Mapping[str, Any]
    ) -> None:
        self._slots: list[tuple[dict[str, Any], str, int]] = []
        self._buffers: set[int] = set()
        self.leaves: list[Tensor] = []
        position: dict[int, int] = {}
        for submodule in dict.fromkeys(s for module in modules for s in module.modules()):
            for group in (submodule._parameters, submodule._buffers):
                for name, tensor in group.items():
                    if tensor is not None:
                        self._slots.append((group, name, self._add(tensor, position)))
                        if group is submodule._buffers:
                            self._buffers.add(position[id(tensor)])
        self._bare = {name: self._add(tensor, position) for name, tensor in bare.items()}
        self._constraints = dict(constraints)
        self.values = [leaf.detach() for leaf in self.leaves]  # the same memory, so what an optimizer changes is seen
        self._position = position

    def _add(self, tensor: Tensor, position: dict[int, int]) -> int:
        if id(tensor) not in position:
            position[id(tensor)] = len(self.leaves)
            self.leaves.append(tensor)
        return position[id(tensor)]

    def index(self, tensor: Tensor) -> int:
        """Return the place of a parameter among the leaves."""
        return self._position[id(tensor)]

    def copies(self) -> list[Tensor]:
        """Return copies of all leaves, each with a gradient where its leaf has one."""
        return [leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in self.leaves]

    @contextmanager
    def replaced(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Let programs read ``tensors`` instead of the leaves; a buffer that a module assigns anew is copied back."""
        store = pyro.get_param_store()
        bare = {name: tensors[i] for name, i in self._bare.items()}
        before = [group[name] for group, name, _ in self._slots]
        with store.scope({"params": bare, "constraints": dict(self._constraints)}):
            try:
                for group, name, i in self._slots:
                    group[name] = tensors[i]
                yield
                with torch.no_grad():
                    for group, name, i in self._slots:
                        if i in self._buffers and group[name] is not tensors[i]:
                            tensors[i].copy_(group[name])
            finally:
                for (group, name, _), tensor in zip(self._slots, before, strict=True):
                    group[name] = tensor


_ALL = {torch.Tensor.all, torch._is_all_true}
_LOOKING = {"pyro.infer.util", "torch.distributions.distribution"}


class _WithoutValues(TorchFunctionMode):
    """Answers where Pyro looks at values.

    ``x.item()`` stays a tensor, so that a loss that is only reported stays in the graph; and where Pyro leaves out of
    an enumerated sum the terms of probability 0, none is taken to have it: such a term adds 0. Distributions that were
    made with validation on are not validated.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item and args[0].is_floating_point():
            return args[0].detach()
        if func in _ALL and sys._getframe(1).f_globals.get("__name__") in _LOOKING:
            return True
        return func(*args, **(kwargs or {}))


@contextmanager
def _traceable() -> Iterator[None]:
    """Switch off what only looks at numbers on the way: validation, and Pyro's warnings of NaN."""
    before = {name: getattr(pyro.util, name) for name in ("torch_isnan", "torch_isinf")}
    try:
        for name in before:
            setattr(pyro.util, name, lambda _: False)
        with pyro.validation_enabled(False):
            yield
    finally:
        for name, function in before.items():
            setattr(pyro.util, name, function)


@contextmanager
def _unchanged() -> Iterator[None]:
    """Put back what torch's compiler changes for the whole process."""
    validate = Distribution._validate_args
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Distribution._validate_args = validate


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Keep Inductor from drawing a Bernoulli variable in its own way, which uses up other random numbers."""
    from torch._inductor.decomposition import decompositions
    from torch._inductor.lowering import lowerings, make_fallback

    operation = torch.ops.aten.bernoulli.default
    decomposition = decompositions.pop(operation, None)
    lowered = operation in lowerings
    try:
        if not lowered:
            make_fallback(operation, warn=False)  # made here: left to Inductor it is an error where $CI is set
        yield
    finally:
        if not lowered:
            lowerings.pop(operation, None)
        if decomposition is not None:
            decompositions[operation] = decomposition


def _bias_added_after(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """Compute ``torch.addmm`` so that Inductor fuses the sum with what follows.

    As one operation the bias is copied to every row first, which costs a pass through memory. The third axis keeps
    Inductor from making one operation of the two again.
    """
    return (alpha * (left @ right).unsqueeze(0) + beta * bias).squeeze(0)


def compiled(function: Function, inputs: Sequence[Tensor]) -> Function:
    """Trace ``function`` on ``inputs`` and compile it for tensors of the same shapes, strides and dtypes.

    Inputs are copied first, and the random state is as it was afterwards. In-place changes of an input are part of the
    compiled function. Call the result without gradients.

    Args:
        function: of tensors, returning a list of tensors, or None in their place.
        inputs: an example of its arguments.

    Raises:
        CannotCompile: when it branches on a value or uses what the compiler does not know.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # imported here: it takes seconds

    device = inputs[0].device

    def watched(*tensors: Tensor) -> Sequence[Any]:
        with _WithoutValues():
            return function(*tensors)

    examples = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
    with same_streams(device), _unchanged():
        try:
            with _traceable():
                graph = make_fx(watched, {torch.ops.aten.addmm.default: _bias_added_after})(*examples)
        except Exception as error:
            raise CannotCompile(f"it cannot be traced ({_reason(error)})") from error
        try:
            options: dict[str, Any] = {"fallback_random": True}  # torch's own random numbers, as the program has them
            with _own_random_numbers(), torch.no_grad(), _no_notice_of_cuda():
                run = torch._inductor.compile(graph, [t.detach() for t in inputs], options=options)
                run(*(t.detach().clone() for t in inputs))
        except Exception as error:
            raise CannotCompile(f"it cannot be compiled ({_reason(error)})") from error
    result: Function = run
    return result


@contextmanager
def _no_notice_of_cuda() -> Iterator[None]:
    """Say nothing of a CUDA runtime that is not found, as torch does where its compiler is first used."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "get value out of a tracing tensor" in text or "data-dependent" in text:
        return "it branches on the value of a tensor"
    return f"{type(error).__name__}: {text[:160]}"


def signature(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return what a compiled function is made for: shapes, strides and dtypes."""
    return tuple((tuple(t.shape), t.stride(), t.dtype) for t in tensors)


def agree(ours: Sequence[Tensor | None], reference: Sequence[Tensor | None], tolerance: float) -> bool:
    """Whether tensors are equal up to ``tolerance`` of each one's largest value, not finite where the other is not."""
    return all(
        (a is None and b is None) or (a is not None and b is not None and _agrees(a, b, tolerance))
        for a, b in zip(ours, reference, strict=True)
    )


def _agrees(a: Tensor, b: Tensor, tolerance: float) -> bool:
    near = (a - b).abs().nan_to_num(0, 0, 0) <= tolerance * (1 + _largest(b))
    return bool(((a.isfinite() == b.isfinite()) & near).all())


def _largest(tensor: Tensor) -> Tensor:
    return tensor.abs().nan_to_num(0, 0, 0).max() if tensor.numel() else tensor.new_zeros(())


@dataclass(frozen=True)
class Work:
    """What a call does, counted and not timed: the same on every run, whatever else the machine has to do.

    Compiling saves the start of every operation, in Python and in torch, and passes through memory, since operations on
    the same numbers become one; products of matrices take as long as before. So the seconds that it saves a call are

        START * operations + PASS * numbers,

    on a CPU by least squares over ten calls of 98 to 468 operations and 1e5 to 7e7 numbers that
    ``benchmarks/compiling.py`` timed both ways (docs/compiling.md); on a card by the steps of docs/speed-cuda.md: 24,
    27 and 26 microseconds an operation of mnist, digits and iaf. Compiling costs ``COMPILE_SECONDS``, which took 13 to
    22 seconds on two idle cores.

    Attributes:
        operations: of torch that a call runs.
        numbers: that they write.
    """

    operations: int
    numbers: float

    def times(self, calls: int, rows: int = 1) -> "Work":
        """Return the work of so many calls like this one, on so many times the rows."""
        return Work(calls * self.operations, calls * rows * self.numbers)

    def saved(self, device: torch.device) -> float:
        """Return the seconds that compiling saves."""
        kind = device.type if device.type in START else "cpu"
        return START[kind] * self.operations + PASS[kind] * self.numbers


class Counted(TorchDispatchMode):
    """Counts the work that reaches torch inside the block, and changes none of it."""

    operations, numbers = 0, 0.0

    @property
    def work(self) -> Work:
        """What was counted."""
        return Work(self.operations, self.numbers)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.operations += 1
        if not func.is_view:
            self.numbers += sum(t.numel() for t in tree_leaves(found) if isinstance(t, Tensor))
        return found


class Choice:
    """Whether a call that is repeated runs compiled; ``"auto"`` decides before the first one, by the work that is left.

    Args:
        mode: True, False or "auto".
        what: is called, for the line that says what was chosen.
        say: takes that line.
    """

    def __init__(self, mode: bool | str, what: str, say: Callable[[str], None]) -> None:
        self.mode, self.what, self.say = mode, what, say
        self.chosen: bool | None = None if mode == "auto" else bool(mode)

    def decide(self, work: Work, calls: int, device: torch.device, functions: int = 1) -> None:
        """Compile when that saves more in all ``calls`` than it costs.

        Args:
            work: of a call.
            calls: that are left.
            device: that they run on.
            functions: to be compiled, one for each shape of what is called.
        """
        saved, cost = work.times(calls).saved(device), COMPILE_SECONDS * functions
        self.chosen = saved > cost
        left = f"{calls} left, each {work.operations} operations that write {work.numbers:.3g} numbers"
        verdict = "compiled, since that pays" if self.chosen else "eager, since compiling does not pay"
        self.say(f"{self.what}: {left}: compiling saves about {saved:.3g} s and costs {cost:.0f} s: {verdict}")

    def give_up(self, reason: str) -> None:
        """Run eagerly from now on, and say why."""
        self.chosen = False
        self.say(f"{self.what} runs eagerly: {reason}")


def check_mode(mode: Any) -> None:
    """Refuse a ``compile`` that is not True, False or "auto"."""
    if not isinstance(mode, bool) and mode != "auto":
        raise ValueError(f'compile must be True, False or "auto", got {mode!r}')
