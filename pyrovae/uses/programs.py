"""Runs of a generative program by itself: on covariates alone, with some of its latents given."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common.checks import brief
from pyrovae.importance.options import Options
from pyrovae.programs.handlers import Repeated, WithinBounds
from pyrovae.programs.isolation import bare_params, default_device, isolated, placed, same_streams
from pyrovae.programs.pair import Pair
from pyrovae.programs.sites import released, sample_sites
from pyrovae.programs.types import Program, Trace

INSTEAD = (
    (0.0, 1),
    (7.3, 3),
)  # number and width of what stands for data that are not given; draws must not depend on it
NEEDS_DATA = ", or use pyrovae.simulate(model, data), which takes data as a template"


@contextmanager
def alone(model: Program, options: Options) -> Iterator[torch.device]:
    """Put a model on the device, in eval mode, with its own random state; yield the device."""
    device = default_device(options["device"])
    pair = Pair(model, model)
    with ExitStack() as stack:
        stack.enter_context(placed(pair.all_modules, device))
        stack.enter_context(
            isolated(
                purpose="program", seed=options["seed"], device=device, modules=pair.all_modules, training=False,
                params=bare_params(device, list(pair.modules.values())), validate=False,
            )
        )  # fmt: skip
        stack.enter_context(torch.no_grad())
        yield device


def as_covariates(model: Program, count: int, given: tuple[Any, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Return covariates ``[count, ...]`` on the device, in the dtype of the model's parameters; one row stands for all.

    Raises:
        ValueError: for another number of rows.
    """
    dtype, tensors = _dtype(model), []
    for position, one in enumerate(given):
        try:
            tensor = torch.as_tensor(one).to(device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"covariates must be tensors or arrays, got {type(one).__name__}") from None
        if tensor.dim() and len(tensor) == 1:
            tensor = tensor.expand(count, *tensor.shape[1:])
        if not tensor.dim() or len(tensor) != count:
            raise ValueError(
                f"covariates must have {count} rows, or one for all, got {list(tensor.shape)} for number {position}"
            )
        tensors.append(tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return tuple(tensors)


def released_run(
    model: Program, count: int, covariates: tuple[Tensor, ...], device: torch.device,
    latents: Mapping[str, Tensor] | None = None,
) -> Trace:  # fmt: skip
    """Run a model that draws what it would observe, for ``count`` observations of which only covariates are given.

    Args:
        model: generative program ``model(*batch)``, whose first arguments are the data.
        count: number of observations.
        covariates: its further arguments; or all of them, the data included, which then only show their shapes.
        device: device of the run.
        latents: values of some latents, with the model's plates.

    Raises:
        ValueError: for a model that computes with its data, whose draws would depend on what stands for them.
    """
    program = released(model)
    if latents is not None:
        program = poutine.condition(program, data=dict(latents))
    number, dtype = max(1, _num_required(model) - len(covariates)), _dtype(model)

    def run(filler: float, width: int) -> Trace:
        data = tuple(torch.full((count, width), filler, device=device, dtype=dtype) for _ in range(number))
        try:
            with Repeated(), WithinBounds():
                return poutine.trace(program).get_trace(*data, *covariates)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ValueError(
                f"the model cannot draw from covariates alone ({type(error).__name__}: {brief(error)}): give all "
                f"covariates that it takes{NEEDS_DATA}"
            ) from error

    try:
        with same_streams(device):
            other = dict(sample_sites(run(*INSTEAD[1])))
        trace = run(*INSTEAD[0])
    except ValueError:
        if len(covariates) < _num_required(model):
            raise
        with Repeated(), WithinBounds():  # the whole batch was given, its data included
            trace = poutine.trace(program).get_trace(*covariates)
        other = dict(sample_sites(trace))
    for name, site in sample_sites(trace):
        if not any(frame.vectorized and frame.dim == -1 for frame in site["cond_indep_stack"]):
            raise ValueError(
                f"latent site {name!r} is shared by all data, so that draws depend on one value of it: fix it, "
                "pyrovae.given(model, guide.draw())"
            )
        one, two = site["value"], other[name]["value"] if name in other else torch.empty(0)
        if one.shape != two.shape or not torch.allclose(one.double(), two.double(), equal_nan=True):
            raise ValueError(
                f"the model computes with its data at site {name!r}, so that its draws need them{NEEDS_DATA}"
            )
    return trace


def _dtype(model: Program) -> torch.dtype:
    """Return the dtype of a model's parameters; torch's default where it has none."""
    parameters = (p for m in Pair(model, model).modules.values() for p in m.parameters() if p.is_floating_point())
    return next((p.dtype for p in parameters), torch.get_default_dtype())


def _num_required(model: Program) -> int:
    """Return how many tensors a program must be given."""
    program = getattr(model, "program", model)
    function = program.forward if isinstance(program, torch.nn.Module) else program
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)
