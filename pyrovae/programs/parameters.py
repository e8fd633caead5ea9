"""Bare parameters: a program keeps its own, wherever it is run."""

import weakref
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae.programs.types import Program


class WithParams:
    """A program together with the bare ``pyro.param`` values that it was fitted with.

    Calling it runs the program against those values, whatever the global param store holds; any other attribute is the
    program's own.
    """

    def __init__(self, program: Program, store: dict[str, Any], pending: dict[str, Tensor] | None = None) -> None:
        self.program = program
        self.store = store
        self.pending = {} if pending is None else pending

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program against its own parameters."""
        try:
            with pyro.get_param_store().scope(self.store), Restore(self.pending):
                return self.program(*args, **kwargs)
        finally:  # leaving the scope removes the references that an optimizer outside of it follows
            for value in self.store["params"].values():
                value.unconstrained = weakref.ref(value)

    def __getattr__(self, name: str) -> Any:
        if "program" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["program"], name)

    def __repr__(self) -> str:
        return f"WithParams({self.program!r}, {sorted(self.store['params'])})"


class Restore(Messenger):
    """Gives bare parameters their saved unconstrained values, each when its ``pyro.param`` first runs."""

    def __init__(self, pending: dict[str, Tensor]) -> None:
        super().__init__()
        self.pending = pending

    def _pyro_post_param(self, msg: Any) -> None:
        saved = self.pending.pop(msg["name"], None)
        if saved is None:
            return
        unconstrained = msg["value"].unconstrained()
        if unconstrained.shape != saved.shape:
            raise ValueError(
                f"parameter {msg['name']!r} was saved with shape {tuple(saved.shape)}, but the program declares "
                f"{tuple(unconstrained.shape)}: load it with the program that was saved"
            )
        with torch.no_grad():
            unconstrained.copy_(saved)
        msg["value"] = pyro.get_param_store()[msg["name"]]
