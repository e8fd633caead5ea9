"""The problem that a fit solves: a pair, its data and an objective, placed on the device and read."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceTMC_ELBO
from torch import Tensor, nn

from pyrovae.data import Data
from pyrovae.importance.question import placed_data
from pyrovae.importance.reading import read
from pyrovae.objectives import Objective
from pyrovae.programs.isolation import default_device, modes
from pyrovae.programs.layout import Layout
from pyrovae.programs.pair import Pair
from pyrovae.programs.parameters import Restore, WithParams
from pyrovae.programs.sites import sample_sites
from pyrovae.programs.state import State
from pyrovae.programs.types import Program, Trace
from pyrovae.training.described import of_a_program
from pyrovae.training.jitted import without_jit
from pyrovae.training.parameters import Params, find_params, first_traces

PRECISIONS = {"float32": None, "float64": torch.float64, "bfloat16": None}


@dataclass(frozen=True)
class Placed:
    """Programs and data on the device, before any of them is run.

    Attributes:
        pair: the programs as their author made them.
        data: data to fit to.
        validation: held-out data to evaluate on after every epoch, or None.
        device: device of the programs and the data.
        precision: "float32", "float64" or "bfloat16".
        store: bare parameters that fitted programs carry, as the state of a param store.
        pending: bare parameters of loaded programs; each gets its value when a program first declares it.
    """

    pair: Pair
    data: Data
    validation: Data | None
    device: torch.device
    precision: str
    store: dict[str, Any]
    pending: dict[str, Tensor]

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of modules and data; None leaves them as they are."""
        return PRECISIONS[self.precision]


@dataclass(frozen=True)
class Problem:
    """A placed pair and what was read from it: everything that a step needs. Nothing in it changes except tensors.

    Attributes:
        pair: pair of programs.
        data: data to fit to.
        validation: held-out data to evaluate on, or None.
        layout: layout of the pair.
        objective: objective to maximise, a copy of the caller's.
        params: trainable parameters, by name.
        bare: those among them that belong to no module.
        programs: descriptions of both programs, which a resumed fit must share.
        state: every tensor that the programs read.
        bfloat16: whether layers that multiply matrices do so in bfloat16.
    """

    pair: Pair
    data: Data
    validation: Data | None
    layout: Layout
    objective: Any
    params: Params
    bare: dict[str, Tensor]
    programs: dict[str, Any]
    state: State
    bfloat16: bool

    @property
    def modules(self) -> list[nn.Module]:
        """The modules of the pair and of the objective."""
        return [*self.pair.all_modules, *_own(self.objective)]

    def weights_at(self, step: int) -> dict[str, float]:
        """Set the objective's weights to their values at a step; return them by name. Pyro's objectives have none."""
        return self.objective.at(step) if isinstance(self.objective, Objective) else {}

    def loss(self, recorder: Any, batch: tuple[Tensor, ...]) -> float:
        """Return the objective's loss on a batch, summed as the objective sums it; the batch ends with its numbers."""
        return float(self.objective.loss(recorder.model, recorder.guide, *recorder.given(batch)))


def place(model: Program, guide: Program, data: Data, validation_data: Any, *, device: Any, precision: str) -> Placed:
    """Move programs and data to the device.

    Raises:
        ValueError: for a precision, a device or data that cannot be used.
    """
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    store: dict[str, Any] = {"params": {}, "constraints": {}}
    pending: dict[str, Tensor] = {}
    pair = Pair(*(_unpacked(program, store, pending) for program in (model, guide)))
    where = default_device(device)
    for module in pair.all_modules:
        module.to(where, PRECISIONS[precision])
    validation, encoding = None, data.encoding
    if validation_data is not None:
        held_out = _explained(lambda: placed_data(pair, validation_data, where, encoding))
        validation = held_out.fixed().numbered(assumed=True)
    placed = placed_data(pair, data, where, encoding).numbered(assumed=True)
    placed.see_that_some_count("the training data")
    if validation is not None:
        validation.see_that_some_count("the validation data")
        if (validation.weights is None) != (placed.weights is None):
            which = ("training", "validation") if validation.weights is None else ("validation", "training")
            warnings.warn(
                f"the {which[0]} data have weights and the {which[1]} data have none, so that the validation bound is "
                "that of another population than the fit's",
                stacklevel=4,
            )
    return Placed(pair, placed, validation, where, precision, store, pending)


def _unpacked(program: Program, store: dict[str, Any], pending: dict[str, Tensor]) -> Program:
    """Unpack a fitted program, and collect the bare parameters that it carries."""
    while isinstance(program, WithParams):
        for name, value in program.store["params"].items():
            if store["params"].setdefault(name, value) is not value:
                raise ValueError(f"model and guide carry different parameters named {name!r}: rename one of them")
        store["constraints"].update(program.store["constraints"])
        pending.update(program.pending)
        program = program.program
    return program


def _explained(act: Callable[[], Any]) -> Any:
    """Call ``act``, which uses the validation data; an error then begins with the name of these data."""
    try:
        return act()
    except ValueError as error:
        raise ValueError(f"validation_data: {error}") from error


def read_problem(placed: Placed, objective: Any, batch_size: int, *, in_parts: bool) -> Problem:
    """Read a pair with its data and objective, and find its parameters.

    Args:
        placed: programs and data on the device.
        objective: any ``pyro.infer.ELBO``; None means ``Trace_ELBO()``.
        batch_size: number of observations in a step.
        in_parts: whether a step sees only a part of the data.

    Raises:
        ValueError: for a pair that cannot be fitted; the message names the site.
    """
    pair, data, validation = placed.pair, placed.data, placed.validation
    with modes(pair.all_modules, training=False), torch.no_grad(), Restore(placed.pending):
        layout = read(pair, data, batch_size)
        if validation is not None:
            _explained(lambda: read(pair, validation, batch_size))
    _see_that_scales_agree(layout, len(data), in_parts)
    objective = without_jit(Trace_ELBO() if objective is None else objective)
    traces = first_traces(pair, data, layout)
    _see_that_unguided_are_summed(layout, objective, traces[0])
    for module in _own(objective):
        module.to(placed.device, placed.dtype)
    params, bare = find_params(pair, data, layout, traces)
    if not params:
        raise ValueError(
            "the pair has no trainable parameter: pass modules, or register them with pyro.module or pyro.param"
        )
    constraints = pyro.get_param_store().get_state()["constraints"]
    state = State([*pair.all_modules, *_own(objective)], bare, {name: constraints[name] for name in bare})
    programs = _described(pair, traces)
    return Problem(
        pair, data, validation, layout, objective, params, bare, programs, state, placed.precision == "bfloat16"
    )


def _own(objective: Any) -> list[nn.Module]:
    return [objective.own] if isinstance(objective, Objective) else []


def _described(pair: Pair, traces: tuple[Trace, Trace]) -> dict[str, Any]:
    return {
        "model": of_a_program(pair.model, "model", traces[0]),
        "guide": of_a_program(pair.guide, "guide", traces[1], model=pair.model),
    }


def _see_that_scales_agree(layout: Layout, num_data: int, in_parts: bool) -> None:
    if layout.uneven:
        raise ValueError(
            f"latent site {layout.uneven[0]!r} is scaled differently in the two programs, so that its KL is "
            "not defined: give the data plates of both the same size, and wrap both in the same poutine.scale"
        )
    if in_parts and layout.global_latents and not layout.subsampled:
        raise ValueError(
            f"latent site {layout.global_latents[0]!r} is shared by all {num_data} data, and the data "
            f"plate is as long as a batch: write pyro.plate('data', {num_data}, subsample_size=len(x)), so "
            "that the loss of a part stands for all data, or fit all of them in one batch"
        )


def _see_that_unguided_are_summed(layout: Layout, objective: Any, model_trace: Trace) -> None:
    """See that the objective treats each latent that the guide does not sample as the latent is marked.

    Raises:
        ValueError: where one would be drawn from its prior and its density counted, which gives no bound.
    """
    sites = dict(sample_sites(model_trace))
    for name in layout.unguided:
        marks = sites[name]["infer"]
        if marks.get("enumerate") != "parallel":
            raise ValueError(
                f"latent site {name!r} of the model is not sampled by the guide: sample it in the guide, or mark "
                'it infer={"enumerate": "parallel"} and use TraceEnum_ELBO'
            )
        what, right = "summed out", TraceEnum_ELBO  # it would take several draws for all values
        if marks.get("num_samples"):
            what, right = "drawn several times", TraceTMC_ELBO  # it would take all values for several draws
        if not isinstance(objective, right):
            raise ValueError(
                f"latent site {name!r} of the model is marked to be {what}, which {type(objective).__name__} "
                f"does not do: use objective={right.__name__}(), or sample it in the guide"
            )
