"""The contract: a generative program and a recognition program, read through effect handlers.

A *pair* is two callables of the same batch, ``model(*batch)`` and ``guide(*batch)``. One ``pyro.plate`` over the data,
at dim -1 and as long as the batch, holds every local latent and every observed site. Everything here works on any such
pair, whoever wrote it; no base class is needed.
"""

import copy
import functools
import inspect
from typing import Any

from pyro import poutine
from torch import Tensor, nn

from pyrovae.common.checks import brief
from pyrovae.programs.contract import read_layout
from pyrovae.programs.enumeration import summed_out
from pyrovae.programs.handlers import Numbered
from pyrovae.programs.layout import Layout
from pyrovae.programs.modules import held_modules, reachable_modules
from pyrovae.programs.origins import Origins
from pyrovae.programs.sites import sample_sites
from pyrovae.programs.types import Batch, Program, Trace


class Pair:
    """A model and a guide, read together.

    Args:
        model: the generative program ``model(*batch)``.
        guide: the recognition program ``guide(*batch)``.

    Attributes:
        modules: modules that the programs are or refer to, by where they were found; their tensors are the pair's.
    """

    def __init__(self, model: Program, guide: Program) -> None:
        for role, program in (("model", model), ("guide", guide)):
            if not callable(program) or inspect.isclass(program):
                raise ValueError(f"the {role} must be a callable of the batch, got {_brief(program)}")
        self.model = model
        self.guide = guide
        modules = [*reachable_modules(model, "model").items(), *reachable_modules(guide, "guide").items()]
        first = {module: name for name, module in reversed(modules)}
        self.modules = {name: module for name, module in modules if first[module] == name}

    def numbered(self, layout: Layout | None = None) -> "Pair":
        """Return the pair with programs that take the numbers of their batch's data as a last argument."""
        other = copy.copy(self)
        other.model, other.guide = (
            Numbered(program.program if isinstance(program, Numbered) else program, role, layout)
            for role, program in (("model", self.model), ("guide", self.guide))
        )
        return other

    def given(self, batch: Batch) -> Batch:
        """Return the part of a batch that the programs themselves take."""
        return batch[:-1] if isinstance(self.model, Numbered) else batch

    @functools.cached_property
    def hidden(self) -> dict[str, nn.Module]:
        """Modules that the programs may run although no module registers them, by where they were found.

        They are in a list, a dict or another plain attribute of a module or object, or are named by its methods. Their
        modes are the pair's, and so are their buffers; their parameters are those that ``pyro.module`` registers.
        """
        members = {part for module in self.modules.values() for part in module.modules()}
        modules: dict[str, nn.Module] = {}
        for role, program in (("model", self.model), ("guide", self.guide)):
            for name, module in held_modules(program, role).items():
                if module not in members:
                    members.update(module.modules())
                    modules[name] = module
        return modules

    @property
    def all_modules(self) -> list[nn.Module]:
        """All modules that the programs may run."""
        return [*self.modules.values(), *self.hidden.values()]

    def traces(self, batch: Batch) -> tuple[Any, Any]:
        """Run the guide on the batch and the model against it; return both traces, model first."""
        guide_trace = poutine.trace(self.guide).get_trace(*batch)
        return self.against(guide_trace, batch), guide_trace

    def against(self, guide_trace: Trace, batch: Batch) -> Trace:
        """Run the model against the draws in a guide's trace."""
        return self.density(poutine.replay(self.model, trace=guide_trace), batch)

    def density(self, program: Program, batch: Batch) -> Trace:
        """Return the trace of the model, its latents given by handlers, with :attr:`Layout.summed` summed out."""
        layout = getattr(self.model, "layout", None)
        if layout is None or not layout.summed:
            return poutine.trace(program).get_trace(*batch)
        return summed_out(program, batch, layout.summed, layout.plate)

    def read(self, batch: Batch) -> tuple[Layout, Any, Any]:
        """Run the pair once on a batch and check that it keeps the contract; return its layout and both traces.

        Raises:
            ValueError: one sentence naming the program or the site that breaks the contract.
        """
        guide_trace = _run("guide", self.guide, self.guide, batch, self.given(batch))
        latents = guide_trace.copy()
        for name, site in sample_sites(guide_trace):
            if site["is_observed"]:
                latents.remove_node(name)
        program = poutine.replay(self.model, trace=latents)
        with Origins(batch) as origins:
            model_trace = _run("model", program, self.model, batch, self.given(batch))
        return read_layout(model_trace, guide_trace, batch, origins), model_trace, guide_trace


def _run(role: str, program: Program, bare: Program, batch: Batch, inputs: Batch) -> Any:
    """Run a program that wraps ``bare``; where it fails, say what was wrong."""
    try:
        return poutine.trace(program).get_trace(*batch)
    except Exception as error:
        described = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in inputs)
        hint = "" if all(t.is_floating_point() for t in inputs) else " (networks take floating numbers: x.float())"
        if isinstance(error, IndexError):
            hint = " (the plate's indices number the data that were given: do the parameters belong to other data?)"
        lacks_argument = isinstance(error, TypeError) and "positional argument" in str(error)
        if not lacks_argument and any(t.is_floating_point() and bool(t.isnan().any()) for t in inputs):
            hint = " (the data hold NaN: an encoder that takes missing values is nn.Observed)"
        width = _width(role, program, bare, batch)
        if width is not None:
            name, expected, columns = width
            raise ValueError(
                f"the {role} fails on a batch of {described}: its {name!r} expects {expected} columns, got {columns}: "
                "give data of that width, or make the layer as wide as what it is given"
            ) from error
        raise ValueError(
            f"the {role} fails on a batch of {described}{hint}: {type(error).__name__}: {brief(error)}"
        ) from error


def _width(role: str, program: Program, bare: Program, batch: Batch) -> tuple[str, int, int] | None:
    """Run a program again; return the first layer whose input has a wrong number of columns, with both numbers."""
    mismatches: list[tuple[str, int, int]] = []

    def look(name: str, layer: Any) -> Any:
        def see(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if isinstance(inputs[0], Tensor) and inputs[0].shape[-1] != layer.in_features:
                mismatches.append((name, layer.in_features, inputs[0].shape[-1]))

        return layer.register_forward_pre_hook(see)

    layers = {
        f"{where}.{name}".removeprefix(f"{role}.").rstrip("."): layer
        for where, module in reachable_modules(bare, role).items()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }
    hooks = [look(name, layer) for name, layer in layers.items()]
    try:
        poutine.trace(program).get_trace(*batch)
    except Exception:  # as it did before
        return mismatches[0] if mismatches else None
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _brief(value: Any) -> str:
    return value.__name__ if inspect.isclass(value) else f"a {type(value).__name__}"
