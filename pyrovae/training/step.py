"""One step of stochastic variational inference, and what it says about the bound."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyrovae.objectives import Objective
from pyrovae.programs.compilation import State, signature
from pyrovae.programs.densities import PARTICLES, mean_density, num_rows, plate_size
from pyrovae.programs.handlers import Numbers, is_recorded
from pyrovae.programs.layout import Layout
from pyrovae.programs.pair import Pair
from pyrovae.programs.sites import data_frames, sample_sites
from pyrovae.programs.types import Batch, Program
from pyrovae.training.bfloat16 import bfloat16_layers
from pyrovae.training.capture import Captured
from pyrovae.training.compiling import Compiler
from pyrovae.training.group import Group, Share, SharedNoise

Params = dict[str, Tensor]


MEASURED = ("loss", "bound", "reconstruction", "kl", "grad_norm")
"""What a step returns as one tensor, in nats per datum except ``grad_norm``: the objective's loss with its scales;
E_q[log p(x, z) - log q(z | x)], E_q[log p(x | z)] and E_q[log q(z | x) - log p(z)] with every scale removed; the norm
of the gradient of the summed loss, before clipping."""


class Recorded:
    """A program that keeps its traces; any other attribute is the program's own.

    Attributes:
        numbers: of the data of the batch that it is run on.
    """

    numbers: Tensor

    def __init__(self, program: Program, name: str, layout: Layout, *, register: bool) -> None:
        self.program, self.name, self.layout = program, name, layout
        self.register = register and isinstance(program, nn.Module) and not isinstance(program, PyroModule)
        self.traces: list[Any] = []

    def __call__(self, *batch: Tensor) -> Any:
        """Run the program."""
        if self.register:
            pyro.module(self.name, self.program)
        with Numbers(self.numbers, self.name, batch, self.layout):
            trace = poutine.trace(self.program).get_trace(*batch)
        if is_recorded():
            self.traces.append(trace)
        return trace.nodes["_RETURN"]["value"]

    def __getattr__(self, name: str) -> Any:
        if "program" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["program"], name)


class Recorder:
    """Runs a pair for an objective and keeps the traces that the objective made it run."""

    def __init__(self, pair: Pair, layout: Layout, *, register: bool) -> None:
        self.model = Recorded(pair.model, "model", layout, register=register)
        self.guide = Recorded(pair.guide, "guide", layout, register=register)

    def given(self, batch: Batch) -> Batch:
        """Return what of a batch the programs take, once they know the numbers of its data."""
        self.model.numbers = self.guide.numbers = batch[-1]
        return batch[:-1]

    @property
    def model_traces(self) -> list[Any]:
        """Of the model, in the order of its runs."""
        return self.model.traces

    @property
    def guide_traces(self) -> list[Any]:
        """Of the guide, in the order of its runs."""
        return self.guide.traces

    def clear(self) -> None:
        """Forget the traces."""
        self.model.traces.clear()
        self.guide.traces.clear()

    def loss_size(self, layout: Layout, num_data: int) -> int:
        """Return the number of data that the objective's summed loss stands for: all of them where it subsamples."""
        trace = self.model_traces[-1]
        full = plate_size(trace, layout.plate)  # longer than the batch also where each datum stands once a particle
        return full if layout.subsampled or full != num_rows(trace, layout.plate, num_data) else num_data

    def annealed(self, layout: Layout, num_data: int) -> bool:
        """Whether a site carries a scale beyond that of a subsampled plate: another number, or a tensor."""
        plate = self.loss_size(layout, num_data) / num_data
        sites = [site for trace in (*self.model_traces, *self.guide_traces) for _, site in sample_sites(trace)]
        local = [layout.plate in {frame.name for frame in data_frames(site)} for site in sites]
        expected = [plate if inside else 1.0 for inside in local]
        scales = [site["scale"] for site in sites]
        return any(isinstance(s, Tensor) or abs(s - e) > 1e-6 * e for s, e in zip(scales, expected, strict=True))

    @torch.no_grad()
    def decompose(self, num_data: int, layout: Layout, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the batch's mean bound, reconstruction and KL in nats per datum, given the loss of a bound likewise.

        Where latents are shared by all data or summed out, the bound is the objective's, not a number where it carries
        a scale beyond the plate's, and its parts are not defined.
        """
        nan = torch.full_like(loss, math.nan)
        if layout.global_latents or layout.unguided or _enumerated(self.guide_traces):
            return (nan if self.annealed(layout, num_data) else -loss), nan, nan
        plate = layout.plate
        reconstruction = _mean([mean_density(trace, plate, num_data, observed=True) for trace in self.model_traces])
        prior = _mean([mean_density(trace, plate, num_data, observed=False) for trace in self.model_traces])
        posterior = _mean([mean_density(trace, plate, num_data, observed=False) for trace in self.guide_traces])
        kl = posterior - prior
        return reconstruction - kl, reconstruction, kl


def _mean(densities: list[Tensor]) -> Tensor:
    return torch.stack(densities).mean()


def _enumerated(traces: Iterable[Any]) -> bool:
    return any(
        site["infer"].get("_enumerate_dim") is not None or _outer_dims(site)
        for trace in traces
        for _, site in sample_sites(trace)
    )


def _outer_dims(site: dict[str, Any]) -> bool:
    plates = [frame.dim for frame in data_frames(site) if frame.name != PARTICLES]
    particles = [frame.dim for frame in data_frames(site) if frame.name == PARTICLES]
    return site["value"].dim() - site["fn"].event_dim > -min([*plates, *particles, 0])


class Stepper(Protocol):
    """Takes steps, and can be saved and continued."""

    recorder: Recorder
    healthy: Tensor
    optimizer: Any

    def step(self, batch: Batch) -> Tensor:
        """Take a step on a batch; return what was measured, in the order of ``MEASURED``."""

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameters."""

    @property
    def lr(self) -> float:
        """The learning rate (of the first group of parameters)."""

    def state(self) -> Any:
        """Return the optimizer's state: tensors and JSON values, nested."""

    def restore(self, state: Any) -> None:
        """Continue from a state."""

    def end_epoch(self, metric: Callable[[], float]) -> None:
        """Note that an epoch has ended; ``metric`` returns how well it went, the lower the better."""


class Gradients:
    """The loss of any ``pyro.infer.ELBO`` and its gradient, as a function of the batch.

    The gradient is that of the objective's loss, summed over the batch, as ``pyro.infer.SVI`` takes it.

    Args:
        pair: of programs.
        layout: of the pair.
        objective: any ``pyro.infer.ELBO``.
        params: that the gradient is taken for.
        state: every tensor that the programs read.
        bfloat16: whether layers that multiply matrices do so in bfloat16.

    Attributes:
        share: what the batch is of a larger one, whose other parts are in other processes; None: the whole.
        seed: of the noise that processes do not share.
    """

    def __init__(
        self, pair: Pair, layout: Layout, objective: Any, params: Params, state: State, bfloat16: bool = False
    ) -> None:
        self.differentiable = hasattr(objective, "differentiable_loss")
        self.recorder = Recorder(pair, layout, register=not self.differentiable)
        self.layout, self.objective, self.state = layout, objective, state
        self.share: Share | None = None
        self.seed = 0
        self._lowered = pair.all_modules if bfloat16 else []
        self.params = list(params.values())
        self.own = list(objective.own.parameters()) if isinstance(objective, Objective) else []
        self._places = [state.index(p) for p in (*self.params, *self.own)]

    def measure(self, batch: Batch) -> list[Tensor | None]:
        """Return what was measured on a batch, ``[5]``, and the gradient of every parameter; nothing is changed.

        The batch's last tensor are its data's numbers.

        Those of the objective's own parameters come last.
        """
        return self._measure(batch, [*self.params, *self.own])

    def pure(self, *tensors: Tensor) -> list[Tensor | None]:
        """Do what :meth:`measure` does, as a function of all that it reads: the programs' state and the batch."""
        held = len(self.state.leaves)
        state, batch = tensors[:held], tensors[held:]
        with torch.enable_grad(), self.state.replaced(state):
            result = self._measure(batch, [state[i] for i in self._places])
        self.recorder.clear()
        return result

    def _measure(self, batch: Batch, params: Sequence[Tensor]) -> list[Tensor | None]:
        self.recorder.clear()
        batch = self.recorder.given(batch)
        shared = nullcontext() if self.share is None else SharedNoise(self.share, self.seed)
        with bfloat16_layers(self._lowered), shared:
            loss, grads = self._gradients(batch, params)
        norm = torch.nn.utils.get_total_norm([grad for grad in grads[: len(self.params)] if grad is not None])
        size = self.recorder.loss_size(self.layout, len(batch[0]))
        loss = loss / size
        parts = self.recorder.decompose(len(batch[0]), self.layout, loss - beyond_bound(self.objective) / size)
        row = torch.stack([part.to(loss.dtype) for part in (loss, *parts, norm)])
        return [row, *grads]

    def _gradients(self, batch: Batch, params: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        if self.differentiable:
            loss: Tensor = self.objective.differentiable_loss(self.recorder.model, self.recorder.guide, *batch)
            return loss.detach(), list(torch.autograd.grad(loss, params, allow_unused=True))
        for p in params:
            p.grad = None
        total = self.objective.loss_and_grads(self.recorder.model, self.recorder.guide, *batch)
        return _total(total, batch), [p.grad for p in params]


class TorchStepper:
    """One torch optimizer over all parameters, its gradients run eagerly or compiled.

    On CUDA a compiled step is replayed as one graph, the optimizer's update included where it allows that.

    Args:
        gradients: of the objective.
        compiler: runs them.
        optimizer: of the parameters.
        clip_norm: largest norm of a gradient; None: any.
        group: of processes that add up their gradients.
        whole: whether a batch's loss stands for all data, because the data plate subsamples.

    Attributes:
        healthy: whether every step so far had a finite loss and gradient. From the first that had not, parameters stay
            as they are: on CUDA nobody waits to see a step's loss, so this is read now and then.
    """

    def __init__(
        self,
        gradients: Gradients,
        compiler: Compiler,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None,
        group: Group,
        whole: bool,
    ) -> None:
        self.group, self.whole = group, whole
        self.gradients, self.compiler, self.optimizer, self.clip_norm = gradients, compiler, optimizer, clip_norm
        self.recorder, self.params = gradients.recorder, gradients.params
        self.all_params = [*gradients.params, *gradients.own]
        self.second: torch.optim.Optimizer | None = getattr(gradients.objective, "optimizer", None)
        self.on_host = self.params[0].device.type == "cpu"
        self.healthy = torch.ones((), dtype=torch.bool, device=self.params[0].device)
        self._captured: dict[Any, Captured] = {}
        self._prepare_capture()

    def _prepare_capture(self) -> None:
        """Where an optimizer can run inside a CUDA graph, tell it so and keep its learning rates on the device."""
        groups = self.optimizer.param_groups
        self._lr = float(groups[0]["lr"])
        self._one_lr = len({float(group["lr"]) for group in groups}) == 1
        groups = groups + ([] if self.second is None else self.second.param_groups)
        here = not self.on_host and self.group.size == 1  # eagerly too, for the same arithmetic either way
        self._capturable = here and all("capturable" in group for group in groups)
        if self._capturable:
            for group in groups:
                group["capturable"] = True
                group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=self.healthy.device)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameters."""
        if lr == self._lr and self._one_lr:
            return
        self._lr, self._one_lr = lr, True
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    @property
    def lr(self) -> float:
        """The learning rate of the first group of parameters."""
        return self._lr

    def step(self, batch: Batch) -> Tensor:
        """Take a step; a loss or gradient that is not finite changes no parameter, nor does any step after it."""
        if self.on_host:
            row, *grads = self._measured(batch)
            loss, *_, norm = row.tolist()
            if math.isfinite(loss) and math.isfinite(norm):
                self._descend(row[-1], grads)
            else:
                self.healthy.fill_(False)
            return row
        key = signature(batch)
        if key in self._captured:
            return self._captured[key](batch)
        row, *grads = self._measured(batch)
        self._descend_if_healthy(row, grads)
        if self._capturable and self.compiler.compiles(batch):
            self._captured[key] = Captured(self._advance, batch, self._changed())
        return row

    def _measured(self, batch: Batch) -> list[Any]:
        found = self.compiler.run(self.gradients, batch)
        share = self.gradients.share
        return found if share is None else self.group.sum(found[0], found[1:], share, self.whole)

    def _advance(self, batch: Batch) -> Tensor:
        row, *grads = self.compiler.run(self.gradients, batch)
        self._descend_if_healthy(row, grads)
        return row

    def _descend_if_healthy(self, row: Tensor, grads: Sequence[Tensor | None]) -> None:
        """Descend without looking: the step is taken, and taken back where a loss or gradient was not finite."""
        self.healthy.logical_and_(row[0].isfinite() & row[-1].isfinite())
        before = [p.detach().clone() for p in self.all_params]
        self._descend(row[-1], grads)
        with torch.no_grad():
            for p, old in zip(self.all_params, before, strict=True):
                p.copy_(torch.where(self.healthy, p, old))

    def _changed(self) -> list[Tensor]:
        states = [*self.optimizer.state.values(), *(self.second.state.values() if self.second is not None else ())]
        moments = [t for state in states for t in state.values() if isinstance(t, Tensor)]
        return [*self.gradients.state.values, *moments, self.healthy]

    def _descend(self, norm: Tensor, grads: Sequence[Tensor | None]) -> None:
        for p, grad in zip(self.all_params, grads, strict=True):
            p.grad = grad
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.params, self.clip_norm, norm)
        self.optimizer.step()
        if self.second is not None:
            self.second.step()

    def state(self) -> Any:
        """Return the optimizer's state."""
        return self.optimizer.state_dict()

    def restore(self, state: Any) -> None:
        """Continue from an optimizer's state."""
        self.optimizer.load_state_dict(state)
        self._prepare_capture()

    def end_epoch(self, metric: Callable[[], float]) -> None:
        """Do nothing."""


class PyroStepper:
    """``pyro.infer.SVI`` with the user's ``pyro.optim.PyroOptim``, which sets its own learning rates and clipping."""

    def __init__(self, pair: Pair, layout: Layout, objective: Any, optimizer: Any) -> None:
        self.recorder = Recorder(pair, layout, register=True)
        self.layout, self.objective, self.optimizer = layout, objective, optimizer
        self.healthy = torch.ones((), dtype=torch.bool)
        self.svi = SVI(self.recorder.model, self.recorder.guide, optimizer, loss=objective)

    def set_lr(self, lr: float) -> None:
        """Refuse: Pyro's optimizer has its own learning rates."""
        raise NotImplementedError

    @property
    def lr(self) -> float:
        """Not a number: Pyro's optimizer has a learning rate for every parameter."""
        return math.nan

    def step(self, batch: Batch) -> Tensor:
        """Take Pyro's step."""
        self.recorder.clear()
        loss = _total(self.svi.step(*self.recorder.given(batch)), batch)
        size = self.recorder.loss_size(self.layout, len(batch[0]))
        loss = loss / size
        parts = self.recorder.decompose(len(batch[0]), self.layout, loss - beyond_bound(self.objective) / size)
        self.healthy.logical_and_(loss.cpu().isfinite())
        return torch.stack([part.to(loss.dtype) for part in (loss, *parts, torch.full_like(loss, math.nan))])

    def state(self) -> Any:
        """Return the state of Pyro's optimizer."""
        return self.optimizer.get_state()

    def restore(self, state: Any) -> None:
        """Continue from a state of Pyro's optimizer."""
        self.optimizer.set_state(state)

    def end_epoch(self, metric: Callable[[], float]) -> None:
        """Let a learning-rate scheduler of Pyro's take its step, by the metric where it waits for a plateau of one."""
        if isinstance(self.optimizer, pyro.optim.PyroLRScheduler):
            schedulers = self.optimizer.optim_objs.values()
            waits = any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in schedulers)
            self.optimizer.step(*([metric()] if waits else []))


def beyond_bound(objective: Any) -> Any:
    """Return what an objective's last loss held beside minus a bound, where it says so; 0 where it does not."""
    beyond = getattr(objective, "beyond_bound", None)
    return 0.0 if beyond is None else beyond


def _total(loss: Any, batch: Batch) -> Tensor:
    total = sum(loss) if isinstance(loss, tuple) else loss
    return torch.as_tensor(total, dtype=torch.get_default_dtype(), device=batch[0].device).detach()
