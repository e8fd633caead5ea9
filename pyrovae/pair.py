"""The contract: a generative program and a recognition program, read through effect handlers.

A *pair* is two callables of the same batch, ``model(*batch)`` and ``guide(*batch)``. One ``pyro.plate`` over the data,
at dim -1 and as long as the batch, holds every local latent and every observed site. Everything here works on any such
pair, whoever wrote it; nothing asks for a base class.
"""

import copy
import dis
import functools
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint
from torch.overrides import TorchFunctionMode

from pyrovae.checks import brief
from pyrovae.enumeration import SUMMED, enumerated, summed_out
from pyrovae.sites import hidden_from_questions, is_enumerated, is_factor, support_of

Program = Callable[..., Any]
Batch = tuple[Tensor, ...]
Site = dict[str, Any]
Trace = Any  # pyro.poutine.Trace, which has no types

PARTICLES = "num_particles_vectorized"  # Pyro's plate of particles


@dataclass(frozen=True)
class Observed:
    """An observed site: its name, the support of its distribution, and which batch tensor it observes (if one does)."""

    name: str
    support: Constraint | None
    source: int | None


@dataclass(frozen=True)
class Layout:
    """What a pair samples and observes.

    Attributes:
        latents: local latent sites, sampled by both programs inside the data plate, in the model's order.
        auxiliary: sites of the guide alone, marked ``infer={"is_auxiliary": True}``.
        global_latents: latent sites outside the data plate.
        unguided: latent sites of the model that the guide does not sample.
        observed: observed sites.
        num_data: length of the batch that was read.
        num_all: length of the whole set; 0 where it is not known.
        plate: name of the data plate.
        nesting: depth of the plates, 1 where there is the data plate alone.
        subsampled: whether the data plate says that the batch stands for more data than it holds.
        uneven: latents that count for a different number of data in the two programs.
        summed: those of the unguided latents that are marked ``infer={"enumerate": "parallel"}``.
        factors: ``pyro.factor`` sites of both programs.
        positions: programs ("model", "guide") that take rows of their batch by the data plate's indices (``x[i]``).
    """

    latents: tuple[str, ...]
    auxiliary: tuple[str, ...]
    global_latents: tuple[str, ...]
    unguided: tuple[str, ...]
    observed: tuple[Observed, ...]
    num_data: int
    plate: str
    nesting: int
    subsampled: bool
    uneven: tuple[str, ...] = ()
    summed: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    num_all: int = 0

    def require_per_datum(self) -> None:
        """Refuse a pair that has no log weight per datum.

        Raises:
            ValueError: naming the latent that is global or that the guide does not sample.
        """
        if self.global_latents:
            raise ValueError(
                f"latent site {self.global_latents[0]!r} is outside the data plate, so it is shared by all data and a "
                "per-datum answer is not defined: move it into the plate, or condition the model on a value of it"
            )
        left = [name for name in self.unguided if name not in self.summed]
        if left:
            raise ValueError(
                f"latent site {left[0]!r} of the model is not sampled by the guide, so its log weight is not "
                'defined: sample it in the guide, or mark it infer={"enumerate": "parallel"} where it is discrete'
            )

    def require_latents(self) -> None:
        """Refuse a pair that has no latents for a question that is about them.

        Raises:
            ValueError: saying so.
        """
        if not self.latents:
            raise ValueError("the pair has no latents that the guide samples, so there is nothing to ask of them")

    def require_guided(self, asked: str) -> None:
        """Refuse a pair whose model has latents that the guide leaves out, each of whose densities is not known.

        Raises:
            ValueError: naming the latent, or when there is none.
        """
        self.require_latents()
        if self.summed:
            raise ValueError(
                f"latent site {self.summed[0]!r} is summed out, so that the latents have no {asked} of their own: "
                "sample it in the guide"
            )


def data_frames(site: Site) -> list[Any]:
    """Return the vectorised plates around a site."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def outer_plates(site: Site) -> list[str]:
    """Return the names of the plates left of the data plate, from the left."""
    return [str(frame.name) for frame in sorted(data_frames(site), key=lambda frame: frame.dim) if frame.dim < -1]


def sample_sites(trace: Any) -> Iterator[tuple[str, Site]]:
    """Iterate over a trace's sample sites; those of no density (subsampling, deterministic, factors) are left out."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["infer"].get("_deterministic") and not site_is_subsample(site):
            if not is_factor(site) and not site["infer"].get(SUMMED):
                yield name, site


def per_datum(site: Site, num_data: int) -> Tensor:
    """Return the site's log density per datum, ``[num_data]``: every scale removed, every mask kept, in nats.

    Plates to the left of the data plate are summed over; Pyro's plate of particles is averaged over.
    """
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    log_prob = scale_and_mask(log_prob, mask=site["mask"])
    particles = [frame.size for frame in data_frames(site) if frame.name == PARTICLES]
    if log_prob.dim() > 1:
        log_prob = log_prob.flatten(0, -2).sum(0)
    return log_prob.expand(num_data) / (particles[0] if particles else 1)


def plate_size(trace: Any, plate: str) -> int:
    """Return the full size of the data plate in a trace: the batch's length, or more where the program subsamples."""
    frame = next(f for site in _samples(trace) for f in data_frames(site) if f.name == plate)
    return int(frame.full_size or frame.size)


def _samples(trace: Any) -> Iterator[Site]:
    return (site for site in trace.nodes.values() if site["type"] == "sample" and not site_is_subsample(site))


def log_density(trace: Any, num_data: int, *, observed: bool | None = None) -> Tensor:
    """Return the trace's log density per datum, ``[num_data]``, in nats.

    Args:
        trace: of a model or a guide.
        num_data: length of the batch.
        observed: only observed sites (True), only latent ones (False), or both (None).
    """
    total: Tensor | None = None
    for _, site in sample_sites(trace):
        if observed is None or site["is_observed"] == observed:
            term = per_datum(site, num_data)
            total = term if total is None else total + term
    return torch.zeros(num_data) if total is None else total


def num_rows(trace: Trace, plate: str, num_data: int) -> int:
    """Return the length of the data plate in a trace: the batch's, times the particles where each datum is repeated.

    The batch's, ``num_data``, where a program has nothing in the plate: a guide of a model without latents.
    """
    sizes = (int(f.size) for site in _samples(trace) for f in data_frames(site) if f.name == plate)
    return next(sizes, num_data)


def mean_density(trace: Trace, plate: str, num_data: int, *, observed: bool | None = None) -> Tensor:
    """Return what :func:`log_density` does, ``[num_data]``, as a mean over the particles that the trace holds."""
    rows = num_rows(trace, plate, num_data)
    found = log_density(trace, rows, observed=observed)
    return found if rows == num_data else found.unflatten(0, (num_data, -1)).mean(1)


class Unrecorded(Messenger):
    """Marks runs of the programs that no record of the fit shall hold: on other data, or on draws of the prior."""


def is_recorded() -> bool:
    """Whether no :class:`Unrecorded` is around."""
    return not any(isinstance(handler, Unrecorded) for handler in poutine.runtime._PYRO_STACK)


class Repeated(Messenger):
    """Lets a subsampled data plate take a batch in which each datum stands several times, longer than the whole set.

    Args:
        plate: that is not to be drawn from at all, where the numbers of its data are not known.
    """

    def __init__(self, plate: str | None = None) -> None:
        super().__init__()
        self.plate = plate

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not site_is_subsample(msg) or msg["value"] is not None:
            return
        if (fn.subsample_size or 0) > fn.size or (msg["name"] == self.plate and fn.subsample_size is not None):
            msg["value"] = torch.arange(fn.subsample_size, device=fn.device) % fn.size
            msg["done"] = True


class Numbers(Messenger):
    """Gives the data plate the numbers of its rows within the whole set.

    ``with pyro.plate("data", N, subsample_size=len(x)) as i`` draws indices that have nothing to do with the batch;
    here ``i`` says which data the batch holds, also where each stands several times in a row, and where the plate is
    as long as the batch. A program that takes rows of its batch by the indices of such a plate (``x[i]``) is given
    positions. Parameters with a value for every datum (``pyro.param(..., event_dim=0)`` in the plate, as Pyro's
    automatic guides have them) are taken at the same numbers, where Pyro does not do so: of a batch as long as the set.

    Args:
        numbers: of the batch's data, ``[N]``.
        role: of the program, "model" or "guide".
        batch: that the program is run on.
        layout: of the pair; None while it is read: every plate as long as the batch is taken for the data plate.
    """

    def __init__(self, numbers: Tensor, role: str, batch: Batch, layout: Layout | None = None) -> None:
        super().__init__()
        self.numbers, self.role, self.batch, self.layout = numbers, role, batch, layout

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            self._give_length(msg)
        if not site_is_subsample(msg) or msg["value"] is not None:
            return
        fn, layout = msg["fn"], self.layout
        size = fn.size if fn.subsample_size is None else fn.subsample_size
        whole = size % len(self.numbers) == 0 if layout else size == len(self.numbers)
        if not whole or (layout and layout.plate != msg["name"]):
            return
        positions = layout is not None and self.role in layout.positions
        msg["value"] = torch.arange(size, device=self.numbers.device) if positions else self._rows(size)
        msg["done"] = True
        msg["stop"] = layout is not None  # the other program's plate, replayed, has nothing to say

    def _pyro_param(self, msg: Any) -> None:
        self._take(msg)

    def _pyro_subsample(self, msg: Any) -> None:
        if not any(msg["args"][0] is tensor for tensor in self.batch):
            self._take(msg)

    def _give_length(self, msg: Any) -> None:
        """Make a data plate without a size (``pyro.plate("data")``) as long as the batch."""
        plate = "data" if self.layout is None else self.layout.plate
        if not any(f.vectorized and f.size == -1 and f.name == plate for f in msg["cond_indep_stack"]):
            return
        rows = len(self.batch[0])
        msg["cond_indep_stack"] = tuple(
            f._replace(size=rows, full_size=rows) if f.name == plate else f for f in msg["cond_indep_stack"]
        )
        shape = msg["fn"].batch_shape
        if not is_factor(msg) and (not shape or shape[-1] == 1):
            msg["fn"] = msg["fn"].expand((*shape[:-1], rows))

    def _rows(self, size: int) -> Tensor:
        return self.numbers.repeat_interleave(size // len(self.numbers))

    def _take(self, msg: Any) -> None:
        """Take the rows of what a program has for every datum of the set; Pyro does so for smaller batches alone."""
        plate = next((f for f in msg["cond_indep_stack"] if self.layout and f.name == self.layout.plate), None)
        event_dim = msg["kwargs"].get("event_dim")
        if plate is None or event_dim is None or plate.size < (plate.full_size or 0):
            return
        value = msg["value"] if msg["value"] is not None else msg["fn"](*msg["args"], **msg["kwargs"])
        dim = plate.dim - event_dim
        if value.dim() >= -dim and value.shape[dim] == plate.full_size != 1:
            self._see_that_all_have_one(str(msg["name"]), value.shape[dim])
            rows = value.index_select(dim, self._rows(plate.size))
            if msg["type"] == "param":
                rows._pyro_unconstrained_param = leaf_of(value)  # where Pyro's plate keeps it, too
            value = rows
        msg["value"], msg["done"] = value, True
        msg["kwargs"] = {key: known for key, known in msg["kwargs"].items() if key != "event_dim"}

    def _see_that_all_have_one(self, name: str, size: int) -> None:
        """Refuse a parameter for every position of a batch, which would meet other data in every batch."""
        layout = self.layout
        if layout and layout.num_all not in (0, size) and not layout.subsampled:
            raise ValueError(
                f"{name!r} has {size} rows in the plate {layout.plate!r}, and there are {layout.num_all} data: give it "
                'a row for each, in pyro.plate("data", N, subsample_size=len(x)), which automatic guides take as '
                "create_plates"
            )


def leaf_of(value: Any) -> Tensor:
    """Return the unconstrained tensor that a parameter's value comes from, or rows of it."""
    leaf: Tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
    found: Tensor = getattr(value, "_pyro_unconstrained_param", leaf)
    return found


def same_numbers() -> Any:
    """Return a handler that tells a model run behind a ``block`` the numbers that programs are told outside of it."""
    known = [handler for handler in poutine.runtime._PYRO_STACK if isinstance(handler, Numbers)]
    return Numbers(known[-1].numbers, "model", known[-1].batch, known[-1].layout) if known else nullcontext()


class Hidden(Messenger):
    """Hides what a program has beside its densities: factors, deterministic values, what a guide observes.

    Args:
        role: of the program, "model" or "guide".
    """

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def _pyro_sample(self, msg: Any) -> None:
        msg["stop"] = msg["stop"] or hidden_from_questions(msg, self.role)


class Numbered:
    """A program whose last argument are the numbers of its batch's data; any attribute is the program's own.

    Once its layout is known, it is a density alone: what counts in training only is hidden.

    Args:
        program: of the batch.
        role: "model" or "guide".
        layout: of the pair; None while it is read.
    """

    def __init__(self, program: Program, role: str, layout: Layout | None = None) -> None:
        self.program, self.role, self.layout = program, role, layout

    def __call__(self, *batch: Tensor) -> Any:
        """Run the program on the batch, its data plate numbered."""
        layout = self.layout
        with ExitStack() as stack:
            if layout is not None and self.role == "model":
                stack.enter_context(enumerated(layout.summed, layout.nesting))
            stack.enter_context(Numbers(batch[-1], self.role, batch[:-1], layout))
            if layout is not None:
                stack.enter_context(Hidden(self.role))
            return self.program(*batch[:-1])

    def __getattr__(self, name: str) -> Any:
        if "program" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["program"], name)


class WithinBounds(TorchFunctionMode):
    """Raises an IndexError where a tensor is indexed beyond its end, which on CUDA nobody can catch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what a tensor is indexed by; pass everything on."""
        kwargs = kwargs or {}
        if func is torch.Tensor.__getitem__ and isinstance(args[0], Tensor):
            first = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
            self._see(args[0], first, 0)
        elif getattr(func, "__name__", "") in ("gather", "index_select", "take_along_dim"):
            rest = [*args[1:], *kwargs.values()]
            index = next((value for value in rest if isinstance(value, Tensor)), None)
            self._see(args[0], index, next((value for value in rest if isinstance(value, int)), 0))
        return func(*args, **kwargs)

    @staticmethod
    def _see(tensor: Tensor, index: Any, dim: int) -> None:
        if isinstance(index, Tensor) and index.dtype == torch.int64 and index.numel() and tensor.dim():
            if int(index.max()) >= tensor.shape[dim]:
                raise IndexError(f"index {int(index.max())} of a tensor of {tensor.shape[dim]} rows")


class Given(Messenger):
    """Gives latent sites values that count for nothing in any density, as if the program held them as constants."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = dict(values)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            value = self.values[msg["name"]]
            msg["fn"] = Delta(value, event_dim=min(msg["fn"].event_dim, value.dim())).mask(False)
            msg["value"], msg["is_observed"], msg["done"] = value, True, True
            msg["infer"] = {**msg["infer"], "_deterministic": True}


def given(model: Program, values: Mapping[str, Tensor]) -> Program:
    """Return a model with some of its latents at given values, constants from then on.

    A pair whose model has latents that all data share (a Bayesian decoder, hyperparameters) has no density per datum;
    with those given it has: ``evaluate(given(model, guide.draw()), guide.local, x)``, once for every draw.

    Args:
        model: generative program ``model(*batch)``.
        values: of latent sites, by name.

    Example:
        >>> from pyrovae import models
        >>> half = given(models.LinearGaussian(2, 5), {"z": torch.zeros(7, 2)})
        >>> half(torch.zeros(7, 5)).shape
        torch.Size([7, 2])
    """
    return _GivenProgram(model, values)


class _GivenProgram:
    def __init__(self, model: Program, values: Mapping[str, Tensor]) -> None:
        self.model, self.values = model, dict(values)

    def __call__(self, *batch: Tensor) -> Any:
        found = {name: value.to(batch[0].device) for name, value in self.values.items()}
        with Given(found):
            return self.model(*batch)


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
        finally:  # leaving the scope strips the references that an optimizer outside of it follows
            for value in self.store["params"].values():
                value.unconstrained = weakref.ref(value)

    def __getattr__(self, name: str) -> Any:
        if "program" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["program"], name)

    def __repr__(self) -> str:
        return f"WithParams({self.program!r}, {sorted(self.store['params'])})"


class Restore(Messenger):
    """Gives bare parameters their saved unconstrained values, each when its ``pyro.param`` is first met."""

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


class Pair:
    """A model and a guide, read together.

    Args:
        model: the generative program ``model(*batch)``.
        guide: the recognition program ``guide(*batch)``.

    Attributes:
        modules: that the programs are or refer to, by where they were found; their tensors are the pair's.
    """

    def __init__(self, model: Program, guide: Program) -> None:
        for role, program in (("model", model), ("guide", guide)):
            if not callable(program) or inspect.isclass(program):
                raise ValueError(f"the {role} must be a callable of the batch, got {_brief(program)}")
        self.model = model
        self.guide = guide
        found = [*reachable_modules(model, "model").items(), *reachable_modules(guide, "guide").items()]
        first = {module: name for name, module in reversed(found)}
        self.modules = {name: module for name, module in found if first[module] == name}

    def numbered(self, layout: Layout | None = None) -> "Pair":
        """Return the pair with programs that take the numbers of their batch's data as a last argument."""
        other = copy.copy(self)
        other.model, other.guide = (
            Numbered(program.program if isinstance(program, Numbered) else program, role, layout)
            for role, program in (("model", self.model), ("guide", self.guide))
        )
        return other

    def given(self, batch: Batch) -> Batch:
        """Return what of a batch the programs themselves take."""
        return batch[:-1] if isinstance(self.model, Numbered) else batch

    @functools.cached_property
    def hidden(self) -> dict[str, nn.Module]:
        """Modules that the programs may run although no module registers them, by where they were found.

        They are in a list, a dict or another plain attribute of a module or object, or are named by its methods. Their
        modes are the pair's, and so are their buffers; their parameters are those that ``pyro.module`` registers.
        """
        known = {part for module in self.modules.values() for part in module.modules()}
        found: dict[str, nn.Module] = {}
        for role, program in (("model", self.model), ("guide", self.guide)):
            for name, module in held_modules(program, role).items():
                if module not in known:
                    known.update(module.modules())
                    found[name] = module
        return found

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
        """Run the pair once on a batch and see that it keeps the contract; return its layout and both traces.

        Raises:
            ValueError: one sentence naming the program or the site that breaks the contract.
        """
        guide_trace = _run("guide", self.guide, self.guide, batch, self.given(batch))
        drawn = guide_trace.copy()
        for name, site in sample_sites(guide_trace):
            if site["is_observed"]:
                drawn.remove_node(name)
        replayed = poutine.replay(self.model, trace=drawn)
        model_trace = _run("model", replayed, self.model, batch, self.given(batch))
        return _layout(model_trace, guide_trace, batch), model_trace, guide_trace


def _run(role: str, program: Program, bare: Program, batch: Batch, given: Batch) -> Any:
    """Run a program that wraps ``bare``, and say what was wrong where it fails."""
    try:
        return poutine.trace(program).get_trace(*batch)
    except Exception as error:
        described = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in given)
        hint = "" if all(t.is_floating_point() for t in given) else " (networks take floating numbers: x.float())"
        if isinstance(error, IndexError):
            hint = " (the data plate's indices number the data that were given: is it that other data have parameters?)"
        if any(t.is_floating_point() and bool(t.isnan().any()) for t in given):
            hint = " (the data hold NaN: an encoder that takes missing values is nn.Observed)"
        width = _width(role, program, bare, batch)
        if width is not None:
            name, expected, found = width
            raise ValueError(
                f"the {role} fails on a batch of {described}: its {name!r} expects {expected} columns, got {found}: "
                "give data of that width, or make the layer as wide as what it is given"
            ) from error
        raise ValueError(
            f"the {role} fails on a batch of {described}{hint}: {type(error).__name__}: {brief(error)}"
        ) from error


def _width(role: str, program: Program, bare: Program, batch: Batch) -> tuple[str, int, int] | None:
    """Run a program again, and return the first layer that is given other columns than it takes, with both numbers."""
    found: list[tuple[str, int, int]] = []

    def look(name: str, layer: Any) -> Any:
        def see(_: nn.Module, given: tuple[Any, ...]) -> None:
            if isinstance(given[0], Tensor) and given[0].shape[-1] != layer.in_features:
                found.append((name, layer.in_features, given[0].shape[-1]))

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
        return found[0] if found else None
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _layout(model_trace: Any, guide_trace: Any, batch: Batch) -> Layout:
    num_data = batch[0].shape[0]
    model_sites = dict(sample_sites(model_trace))
    guide_sites = {name: site for name, site in sample_sites(guide_trace) if not site["is_observed"]}
    for name, site in sample_sites(guide_trace):
        if site["is_observed"] and name in model_sites and not model_sites[name]["is_observed"]:
            raise ValueError(f"site {name!r} of the guide is observed, but a latent of the model: observe it there too")
    plate = _data_plate([*model_sites.values(), *guide_sites.values()], num_data)
    everything = [site for trace in (model_trace, guide_trace) for site in _samples(trace)]
    for name, site in guide_sites.items():
        if name not in model_sites and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"site {name!r} of the guide is not in the model: sample it in the model too, or mark it "
                'infer={"is_auxiliary": True}'
            )
    latents: list[str] = []
    global_latents: list[str] = []
    unguided: list[str] = []
    observed: list[Observed] = []
    for name, site in model_sites.items():
        local = plate in {frame.name for frame in data_frames(site)}
        if site["is_observed"]:
            if not local:
                raise ValueError(f"observed site {name!r} is outside the data plate {plate!r}: move it inside")
            _same_events(name, site)
            observed.append(_observed(name, site, batch))
            continue
        inside = name not in guide_sites or plate in {frame.name for frame in data_frames(guide_sites[name])}
        if local != inside:
            raise ValueError(f"latent site {name!r} is inside the data plate in one program and outside in the other")
        if not local:
            global_latents.append(name)
        elif name in guide_sites:
            latents.append(name)
        if name not in guide_sites:
            unguided.append(name)
    auxiliary = [name for name in guide_sites if name not in model_sites]
    global_latents += [n for n in auxiliary if plate not in {frame.name for frame in data_frames(guide_sites[n])}]
    if not observed:
        raise ValueError(
            "the model observes nothing: give one of its sites obs= a tensor of the batch (a pyro.factor is no density "
            "of data)"
        )
    return Layout(
        latents=tuple(latents),
        auxiliary=tuple(auxiliary),
        global_latents=tuple(global_latents),
        unguided=tuple(unguided),
        observed=tuple(observed),
        num_data=num_data,
        plate=plate,
        nesting=max(-f.dim for site in everything for f in data_frames(site)),
        subsampled=plate_size(model_trace, plate) != num_data,
        uneven=tuple(n for n in latents if _differ(model_sites[n]["scale"], guide_sites[n]["scale"])),
        summed=tuple(n for n in unguided if n not in global_latents and is_enumerated(model_sites[n])),
        factors=tuple(str(site["name"]) for site in everything if is_factor(site)),
    )


def _same_events(name: str, site: Site) -> None:
    """Refuse a distribution that would be stretched over the columns of what it is to be the distribution of."""
    expected, value = tuple(site["fn"].event_shape), site["value"]
    found = tuple(value.shape[value.dim() - len(expected) :]) if expected else ()
    if found != expected:
        raise ValueError(
            f"observed site {name!r} has data of {found} columns, but the model gives it a distribution of {expected}: "
            "make the decoder as wide as the likelihood asks (likelihood.features(shape))"
        )


def _differ(one: Any, other: Any) -> bool:
    first, second = (torch.as_tensor(scale, dtype=torch.float64).cpu() for scale in (one, other))
    return not torch.isclose(first, second, rtol=1e-6, atol=0).all()


def _data_plate(sites: list[Site], num_data: int) -> str:
    ordered = sorted(sites, key=lambda site: not site["is_observed"])  # the plate around the observations, if in doubt
    frames = list(dict.fromkeys(frame for site in ordered for frame in data_frames(site)))
    named = [frame for frame in frames if frame.name == "data"]
    for frame in named:
        if frame.dim != -1 or frame.size != num_data:
            raise ValueError(
                f"the plate 'data' has length {frame.size} at dim {frame.dim}, but the batch has {num_data} data: "
                "it must be as long as the batch, at dim -1"
            )
    candidates = named or [frame for frame in frames if frame.dim == -1 and frame.size == num_data]
    if not candidates:
        first = next((str(site["name"]) for site in sites), "its sites")
        raise ValueError(
            f"the model has no data plate around site {first!r}: put its sites inside "
            f'pyro.plate("data", x.shape[0]) at dim -1, as long as the batch ({num_data} data)'
        )
    return str(candidates[0].name)


def _observed(name: str, site: Site, batch: Batch) -> Observed:
    value = site["value"]
    same = [i for i, t in enumerate(batch) if value is t] or [i for i, t in enumerate(batch) if _same_memory(value, t)]
    base = site["fn"]
    while hasattr(base, "base_dist"):
        base = base.base_dist
    checked = isinstance(base, Distribution) and base._validate_args
    return Observed(name, support_of(site["fn"]) if checked else None, same[0] if same else None)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.data_ptr() == other.data_ptr()


def _brief(value: Any) -> str:
    return value.__name__ if inspect.isclass(value) else f"a {type(value).__name__}"


def unwrapped(program: Program) -> Program:
    """Return the program as its author made it."""
    while isinstance(program, WithParams | Numbered):
        program = program.program
    return program


def reachable_modules(program: Program, name: str) -> dict[str, nn.Module]:
    """Return the ``nn.Module`` objects that a program is or refers to, by where they were found.

    Looks at a module itself, a bound method's object, a function's closure and the globals that it names, partials and
    containers; submodules are not listed apart from their parents.
    """
    program = unwrapped(program)  # so that names are the same before and after a fit
    found: dict[str, nn.Module] = {}
    _search(program, name, found, set())
    return found


def _search(value: Any, name: str, found: dict[str, nn.Module], seen: set[int]) -> None:
    if id(value) in seen or inspect.isclass(value) or isinstance(value, types.ModuleType | Tensor | str | bytes):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        found[name] = value
        return
    for key, part in _parts(value):
        _search(part, f"{name}.{key}", found, seen)


def held_modules(program: Program, name: str) -> dict[str, nn.Module]:
    """Return every ``nn.Module`` that a program may run, by where it was found; submodules are listed too.

    Looks where :func:`reachable_modules` does, and also into the plain attributes of modules (a list of networks, a
    closure), into dicts of any keys, sets and slots, and at the globals that the methods of an object name.
    """
    found: dict[str, nn.Module] = {}
    _search_held(program, name, found, set())
    return found


def _search_held(value: Any, name: str, found: dict[str, nn.Module], seen: set[int]) -> None:
    if isinstance(value, Tensor | str | bytes | int | float | types.ModuleType) or inspect.isclass(value):
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        found[name] = value
    for key, part in _held_parts(value):
        _search_held(part, name if key in ("program", "_modules") else f"{name}.{key}", found, seen)


def _held_parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, set | frozenset):
        return enumerate(value)
    if isinstance(value, types.MethodType):
        return [("self", value.__self__), ("function", value.__func__)]
    if isinstance(value, types.FunctionType):
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [] if _of_library(value.__module__) else [*_parts(value), *enumerate(defaults)]
    if isinstance(value, nn.Module):
        return [*vars(value).items(), *_methods(value)]
    if isinstance(value, WithParams | functools.partial | list | tuple):
        return list(_parts(value))
    slots = [name for cls in type(value).__mro__ for name in _names_of_slots(cls) if hasattr(value, name)]
    wrapped = getattr(value, "__dict__", {}).get("__wrapped__")  # of a cached function, which is no function itself
    own = [*_attributes(value), *((name, getattr(value, name)) for name in slots)]
    return [*own, ("wrapped", wrapped), *_methods(value)]


def _names_of_slots(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    return [] if _of_library(cls.__module__) else [slots] if isinstance(slots, str) else list(slots)


def _methods(value: Any) -> list[tuple[str, types.FunctionType]]:
    """Return the functions of an object's class, those of libraries left out."""
    classes = [cls for cls in type(value).__mro__ if not _of_library(cls.__module__)]
    members = [
        (key, getattr(m, "fget", None) or getattr(m, "__func__", m)) for c in classes for key, m in vars(c).items()
    ]
    return [(key, function) for key, function in members if isinstance(function, types.FunctionType)]


def python_numbers(pair: Pair) -> dict[str, float]:
    """Return the plain numbers that the programs hold, by where they were found: counters, weights, switches."""
    numbers: dict[str, float] = {}
    for role, program in (("model", pair.model), ("guide", pair.guide)):
        _search_numbers(program, role, numbers, set())
    return numbers


def _search_numbers(value: Any, name: str, found: dict[str, float], seen: set[int]) -> None:
    if isinstance(value, bool | int | float):
        found[name] = value
        return
    if id(value) in seen or inspect.isclass(value) or isinstance(value, types.ModuleType | Tensor | str | bytes):
        return
    seen.add(id(value))
    members = [*value.named_children(), *vars(value).items()] if isinstance(value, nn.Module) else _parts(value)
    for key, part in members:
        _search_numbers(part, f"{name}.{key}", found, seen)


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, WithParams | Numbered):
        return [("program", value.program)]
    if isinstance(value, functools.partial):
        return [("func", value.func), *enumerate(value.args), *value.keywords.items()]
    if isinstance(value, types.MethodType):
        owner = value.__self__
        return (
            [("self", owner)] if isinstance(owner, nn.Module) else [("function", value.__func__), *_attributes(owner)]
        )
    if isinstance(value, types.FunctionType):
        wrapped = [("wrapped", value.__wrapped__)] if hasattr(value, "__wrapped__") else []
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        closure = [(key, cell.cell_contents) for key, cell in cells if _filled(cell)]
        names = [(key, value.__globals__[key]) for key in _global_names(value.__code__) if key in value.__globals__]
        return [*wrapped, *closure, *(names if not _installed(value) else [])]
    if isinstance(value, dict):
        return [(key, part) for key, part in value.items() if isinstance(key, str)]
    if isinstance(value, list | tuple):
        return enumerate(value)
    return _attributes(value)


def _global_names(code: types.CodeType) -> list[str]:
    """Return the global names that a function reads, those of the functions written inside it included."""
    own = [str(i.argval) for i in dis.get_instructions(code) if i.opname in {"LOAD_GLOBAL", "LOAD_NAME"}]
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _global_names(part)]
    return list(dict.fromkeys([*own, *inner]))


def _attributes(value: Any) -> list[tuple[str, Any]]:
    return [] if _installed(value) else list(getattr(value, "__dict__", {}).items())


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _installed(value: Any) -> bool:
    """Whether a function or object belongs to a library, whose globals hold nothing of the user's."""
    owner = value.__module__ if isinstance(value, types.FunctionType) else type(value).__module__
    return str(owner).split(".")[0] in {"torch", "pyro", "numpy", "builtins", "functools", "contextlib"}


def _of_library(module: Any) -> bool:
    """Whether the functions of a module, by its name, name nothing of the user's."""
    root = str(module).split(".")[0]
    return root in {"torch", "pyro", "numpy", "pyrovae"} or root in sys.stdlib_module_names
