"""Effect handlers: numbers of the observations, hidden sites, given latents."""

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrovae.internals.pyro import handlers_around, mark_leaf
from pyrovae.programs.enumeration import enumerated
from pyrovae.programs.layout import Layout
from pyrovae.programs.sites import hidden_from_questions, is_factor
from pyrovae.programs.types import Batch, Program


class Unrecorded(Messenger):
    """Marks runs of the programs that the record of a fit leaves out: on other data, or on draws of the prior."""


def is_recorded() -> bool:
    """Whether no :class:`Unrecorded` handler is active."""
    return not handlers_around(Unrecorded)


class Repeated(Messenger):
    """Lets a subsampled data plate take a batch that repeats observations, and is longer than the whole set.

    Args:
        plate: name of a plate whose indices are never drawn, for data whose numbers are not known.
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

    ``with pyro.plate("data", N, subsample_size=len(x)) as i`` draws indices that have nothing to do with the batch.
    Here ``i`` says which data the batch holds, also where each is repeated several times in a row, and where the plate
    is as long as the batch. A program that takes rows of its batch by the indices of such a plate (``x[i]``) gets
    positions instead. Some parameters have a value per observation (``pyro.param(..., event_dim=0)`` in the plate, as
    in Pyro's automatic guides). Their rows are taken at the same numbers where Pyro does not do so: for a batch as long
    as the whole set.

    Args:
        numbers: numbers of the batch's data, ``[N]``.
        role: role of the program, "model" or "guide".
        batch: batch that the program is run on.
        layout: layout of the pair; None while it is read, when every plate as long as the batch is taken for the data
            plate.
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
        msg["stop"] = layout is not None  # so that a replay of the other program's plate changes nothing

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
        """Take the batch's rows of a value with one row per observation; Pyro does so only for smaller batches."""
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
                mark_leaf(rows, value)
            value = rows
        msg["value"], msg["done"] = value, True
        msg["kwargs"] = {key: argument for key, argument in msg["kwargs"].items() if key != "event_dim"}

    def _see_that_all_have_one(self, name: str, size: int) -> None:
        """Refuse a parameter with a row per position of the batch: each row would meet other data in every batch."""
        layout = self.layout
        if layout and layout.num_all not in (0, size) and not layout.subsampled:
            raise ValueError(
                f"{name!r} has {size} rows in the plate {layout.plate!r}, and there are {layout.num_all} data: give it "
                'a row for each, in pyro.plate("data", N, subsample_size=len(x)), which automatic guides take as '
                "create_plates"
            )


def same_numbers() -> Any:
    """Return a handler that gives a model inside a ``block`` the same numbers that programs outside of it get."""
    around = handlers_around(Numbers)
    return Numbers(around[-1].numbers, "model", around[-1].batch, around[-1].layout) if around else nullcontext()


class Hidden(Messenger):
    """Hides what a program has besides its densities: factors, deterministic values, what a guide observes.

    Args:
        role: role of the program, "model" or "guide".
    """

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def _pyro_sample(self, msg: Any) -> None:
        msg["stop"] = msg["stop"] or hidden_from_questions(msg, self.role)


class Numbered:
    """A program that takes the numbers of its batch's data as last argument; any attribute is the program's own.

    Once its layout is known, only its densities are left: what counts only in training is hidden.

    Args:
        program: program of the batch, without the numbers.
        role: role of the program, "model" or "guide".
        layout: layout of the pair; None while it is read.
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
    """Raises an IndexError where a tensor is indexed beyond its end; the error of CUDA itself cannot be caught."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the indices of a tensor, and run every function as it is."""
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
    """Gives values to latent sites, which then add nothing to any density, as if the program had them as constants."""

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
    """Return a model with some of its latents at given values, which are constants from then on.

    A pair whose model has global latents (a Bayesian decoder, hyperparameters) has no density per observation. With
    these latents given it has one: ``evaluate(given(model, guide.draw()), guide.local, x)``, called once per draw.

    Args:
        model: generative program ``model(*batch)``.
        values: values of latent sites, by name.

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

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the model: how its table was read, say."""
        if "model" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["model"], name)

    def __call__(self, *batch: Tensor) -> Any:
        values = {name: value.to(batch[0].device) for name, value in self.values.items()}
        with Given(values):
            return self.model(*batch)
