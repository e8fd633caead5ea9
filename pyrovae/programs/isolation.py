"""Everything global that a call touches is put back: random state, validation flags, param store, train/eval modes."""

import random
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrovae.internals.pyro import constraints_of
from pyrovae.internals.torch import cuda_generator
from pyrovae.programs.streams import check_seed, stream_seed

_ONE_AT_A_TIME = threading.RLock()  # random state, flags and the param store belong to the whole process


def default_device(device: torch.device | str | None = None) -> torch.device:
    """Return ``device``; when it is None, the CUDA device if there is one, else the CPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


@contextmanager
def random_state(purpose: str, seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch for a purpose inside the block; afterwards the caller's random state is as it was before."""
    check_seed(seed)
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=_cuda_indices(device), device_type="cuda"):
        seed_streams(purpose, seed, device)
        yield


@contextmanager
def same_streams(device: torch.device | None = None) -> Iterator[None]:
    """Restore torch's random state of the CPU and of ``device`` after the block."""
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=_cuda_indices(device), device_type="cuda"):
        yield


def seed_streams(purpose: str, seed: int, device: torch.device | None = None) -> None:
    """Seed torch's generators of the CPU and of ``device``, and of no other device, for a purpose."""
    seed = stream_seed(purpose, seed)
    torch.default_generator.manual_seed(seed)
    for index in _cuda_indices(device):
        cuda_generator(index).manual_seed(seed)


def _cuda_indices(device: torch.device | None) -> list[int]:
    if device is None or device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]


@contextmanager
def importing() -> Iterator[None]:
    """Let libraries be imported inside the block, or import more of their modules, and put back what this changes.

    It changes the warning filters and the random state of Python, NumPy and torch.
    """
    with _ONE_AT_A_TIME:
        before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002  the global one is what is meant
        try:
            with warnings.catch_warnings(), same_streams():
                yield
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)  # noqa: NPY002


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make ``dtype`` torch's default inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def modes(modules: Iterable[nn.Module], *, training: bool) -> Iterator[None]:
    """Put every module into train or eval mode inside the block, and each submodule back afterwards."""
    before = {submodule: submodule.training for module in modules for submodule in module.modules()}
    try:
        for submodule in before:
            submodule.training = training
        yield
    finally:
        for submodule, mode in before.items():
            submodule.training = mode


@contextmanager
def placed(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Move modules to ``device`` inside the block, and back afterwards; modules that are there already stay."""
    homes: list[tuple[nn.Module, torch.device]] = []
    try:
        for module in modules:
            here = next((t.device for t in [*module.parameters(), *module.buffers()]), device)
            if here.type != device.type:
                module.to(device)
                homes.append((module, here))
        yield
    finally:
        for module, before in homes:
            module.to(before)


def bare_params(device: torch.device, modules: Iterable[nn.Module] = ()) -> dict[str, Any]:
    """Copy the caller's bare ``pyro.param`` entries; modules bring their own parameters themselves.

    A ``PyroModule`` would take over a stored value that has the name of its parameter, so such names are left out too.
    """
    store = pyro.get_param_store()
    entries: Mapping[str, Tensor] = dict(store.named_parameters())
    own_names = {
        name.removesuffix("_unconstrained")
        for module in modules
        if isinstance(module, PyroModule)
        for name, _ in module.named_parameters()
    }
    bare = {name: v for name, v in entries.items() if not isinstance(v, nn.Parameter) and name not in own_names}
    params = {
        name: value
        if value.device.type == device.type
        else value.detach().to(device).requires_grad_(value.requires_grad)
        for name, value in bare.items()
    }
    return {"params": params, "constraints": {name: constraints_of(store)[name] for name in bare}}


@contextmanager
def isolated(
    *,
    purpose: str,
    seed: int,
    device: torch.device,
    modules: Iterable[nn.Module],
    training: bool,
    params: dict[str, Any],
    validate: bool = True,
) -> Iterator[None]:
    """Run a public call with its own random stream, param store and flags; put the caller's back afterwards.

    All of these belong to the whole process, so a call in another thread waits until this one is done.

    Args:
        purpose: purpose of the draws from torch's own generators inside the block, which names their stream.
        seed: seed of the call.
        device: where tensors are created by default, so that plain functions run unchanged on CUDA.
        modules: modules that are in the mode ``training`` inside the block.
        training: True for train mode, False for eval mode.
        params: state of the param store inside the block, as ``ParamStoreDict.get_state`` returns it.
        validate: whether Pyro and torch validate distributions and sites.
    """
    modules = list(modules)
    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(
            warnings.catch_warnings()
        )  # on first use torch imports modules that add filters of their own
        warnings.filterwarnings("ignore", ".*was not registered in the param store")  # frozen on purpose
        warnings.filterwarnings("ignore", "Encountered NaN|Encountered .inf")  # reported with step, site and data
        stack.enter_context(random_state(purpose, seed, device))
        stack.enter_context(pyro.get_param_store().scope(params))
        stack.enter_context(pyro.validation_enabled(validate))
        stack.enter_context(modes(modules, training=training))
        stack.enter_context(poutine.block())
        if torch.get_default_device().type != device.type:  # a default costs time at every call of torch
            stack.enter_context(device)
        yield
