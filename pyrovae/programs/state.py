"""Every tensor that a pair's programs read, as one list that can be passed to a pure function."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn


class State:
    """Every tensor that programs read besides their batch: parameters and buffers of modules, and bare parameters.

    Args:
        modules: modules that the programs use.
        bare: unconstrained values of bare ``pyro.param``s, by name.
        constraints: constraints of the bare parameters, by name.
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
        self.values = [leaf.detach() for leaf in self.leaves]  # in the same memory, which an optimizer changes
        self._position = position

    def _add(self, tensor: Tensor, position: dict[int, int]) -> int:
        if id(tensor) not in position:
            position[id(tensor)] = len(self.leaves)
            self.leaves.append(tensor)
        return position[id(tensor)]

    def index(self, tensor: Tensor) -> int:
        """Return the position of a parameter among the leaves."""
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


def program_state(modules: Iterable[nn.Module]) -> State:
    """Return what programs read: their modules' tensors, and the bare parameters in the store."""
    modules = list(modules)
    ids = {id(p) for module in modules for p in module.parameters()}
    store = pyro.get_param_store().get_state()
    bare = {name: value for name, value in store["params"].items() if id(value) not in ids}
    return State(modules, bare, {name: store["constraints"][name] for name in bare})
