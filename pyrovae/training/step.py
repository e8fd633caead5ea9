"""One step of stochastic variational inference, and what it says about the bound."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrovae.pair import PARTICLES, Batch, Layout, Pair, Program, data_frames, log_density, plate_size, sample_sites

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    """What a step says, each a scalar tensor, in nats per datum except ``grad_norm``.

    Attributes:
        loss: the objective's loss, its scales included.
        bound: E_q[log p(x, z) - log q(z | x)], every scale removed.
        reconstruction: E_q[log p(x | z)].
        kl: E_q[log q(z | x) - log p(z)], sampled.
        grad_norm: global norm of the gradient of the summed loss, before clipping.
    """

    loss: Tensor
    bound: Tensor
    reconstruction: Tensor
    kl: Tensor
    grad_norm: Tensor


class Recorder:
    """Runs a pair for an objective and keeps the traces that the objective made it run."""

    def __init__(self, pair: Pair, *, register: bool) -> None:
        self._programs = pair.model, pair.guide
        self._register = register
        self.model_traces: list[Any] = []
        self.guide_traces: list[Any] = []

    def model(self, *batch: Tensor) -> Any:
        """Run the model."""
        return self._run(self._programs[0], "model", batch, self.model_traces)

    def guide(self, *batch: Tensor) -> Any:
        """Run the guide."""
        return self._run(self._programs[1], "guide", batch, self.guide_traces)

    def clear(self) -> None:
        """Forget the traces."""
        self.model_traces.clear()
        self.guide_traces.clear()

    def _run(self, program: Program, name: str, batch: Batch, traces: list[Any]) -> Any:
        if self._register and isinstance(program, nn.Module) and not isinstance(program, PyroModule):
            pyro.module(name, program)
        trace = poutine.trace(program).get_trace(*batch)
        traces.append(trace)
        return trace.nodes["_RETURN"]["value"]

    def loss_size(self, layout: Layout) -> int:
        """Return the number of data that the objective's summed loss stands for: all of them where it subsamples."""
        return plate_size(self.model_traces[-1], layout.plate)

    def annealed(self, layout: Layout, num_data: int) -> bool:
        """Whether a site carries a scale beyond that of a subsampled plate."""
        plate = self.loss_size(layout) / num_data
        sites = [site for trace in (*self.model_traces, *self.guide_traces) for _, site in sample_sites(trace)]
        local = [layout.plate in {frame.name for frame in data_frames(site)} for site in sites]
        expected = [plate if inside else 1.0 for inside in local]
        scales = [torch.as_tensor(site["scale"], dtype=torch.float64) for site in sites]
        return any(not bool((s - e).abs().max() < 1e-6 * e) for s, e in zip(scales, expected, strict=True))

    @torch.no_grad()
    def decompose(self, num_data: int, layout: Layout, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the batch's mean bound, reconstruction and KL in nats per datum.

        Where latents are shared by all data or summed out, the bound is the objective's, not a number where it carries
        a scale beyond the plate's, and its parts are not defined.
        """
        nan = torch.full_like(loss, math.nan)
        if layout.global_latents or layout.unguided or _enumerated(self.guide_traces):
            return (nan if self.annealed(layout, num_data) else -loss), nan, nan
        reconstruction = _mean([log_density(trace, num_data, observed=True) for trace in self.model_traces])
        prior = _mean([log_density(trace, num_data, observed=False) for trace in self.model_traces])
        posterior = _mean([log_density(trace, num_data) for trace in self.guide_traces])
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

    def step(self, batch: Batch) -> Outcome:
        """Take a step on a batch."""

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameters."""

    @property
    def lr(self) -> float:
        """The learning rate (of the first group of parameters)."""

    def state(self) -> Any:
        """Return the optimizer's state: tensors and JSON values, nested."""

    def restore(self, state: Any) -> None:
        """Continue from a state."""

    def end_epoch(self) -> None:
        """Note that an epoch has ended."""


class TorchStepper:
    """Gradients of any ``pyro.infer.ELBO``, one torch optimizer over all parameters.

    The gradient is that of the objective's loss, summed over the batch, as ``pyro.infer.SVI`` takes it.
    """

    def __init__(
        self,
        pair: Pair,
        layout: Layout,
        objective: Any,
        params: Params,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None,
    ) -> None:
        self.differentiable = hasattr(objective, "differentiable_loss")
        self.recorder = Recorder(pair, register=not self.differentiable)
        self.layout, self.objective, self.optimizer, self.clip_norm = layout, objective, optimizer, clip_norm
        self.params = list(params.values())

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameters."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @property
    def lr(self) -> float:
        """The learning rate of the first group of parameters."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, batch: Batch) -> Outcome:
        """Take a step; a loss or gradient that is not finite changes no parameter."""
        loss = self._gradients(batch)
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        per_datum_loss = loss / self.recorder.loss_size(self.layout)
        outcome = Outcome(per_datum_loss, *self.recorder.decompose(len(batch[0]), self.layout, per_datum_loss), norm)
        if bool(outcome.loss.isfinite()) and bool(norm.isfinite()):
            if self.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self.params, self.clip_norm, norm)
            self.optimizer.step()
        return outcome

    def _gradients(self, batch: Batch) -> Tensor:
        self.recorder.clear()
        for p in self.params:
            p.grad = None
        if self.differentiable:
            loss: Tensor = self.objective.differentiable_loss(self.recorder.model, self.recorder.guide, *batch)
            grads = torch.autograd.grad(loss, self.params, allow_unused=True)
            for p, grad in zip(self.params, grads, strict=True):
                p.grad = grad
            return loss.detach()
        return _total(self.objective.loss_and_grads(self.recorder.model, self.recorder.guide, *batch), batch)

    def state(self) -> Any:
        """Return the optimizer's state."""
        return self.optimizer.state_dict()

    def restore(self, state: Any) -> None:
        """Continue from an optimizer's state."""
        self.optimizer.load_state_dict(state)

    def end_epoch(self) -> None:
        """Do nothing."""


class PyroStepper:
    """``pyro.infer.SVI`` with the user's ``pyro.optim.PyroOptim``, which sets its own learning rates and clipping."""

    def __init__(self, pair: Pair, layout: Layout, objective: Any, optimizer: Any) -> None:
        self.recorder = Recorder(pair, register=True)
        self.layout, self.optimizer = layout, optimizer
        self.svi = SVI(self.recorder.model, self.recorder.guide, optimizer, loss=objective)

    def set_lr(self, lr: float) -> None:
        """Refuse: Pyro's optimizer has its own learning rates."""
        raise NotImplementedError

    @property
    def lr(self) -> float:
        """Not a number: Pyro's optimizer has a learning rate for every parameter."""
        return math.nan

    def step(self, batch: Batch) -> Outcome:
        """Take Pyro's step."""
        self.recorder.clear()
        loss = _total(self.svi.step(*batch), batch) / self.recorder.loss_size(self.layout)
        parts = self.recorder.decompose(len(batch[0]), self.layout, loss)
        return Outcome(loss, *parts, torch.full_like(loss, math.nan))

    def state(self) -> Any:
        """Return the state of Pyro's optimizer."""
        return self.optimizer.get_state()

    def restore(self, state: Any) -> None:
        """Continue from a state of Pyro's optimizer."""
        self.optimizer.set_state(state)

    def end_epoch(self) -> None:
        """Let a learning-rate scheduler of Pyro's take its step."""
        if isinstance(self.optimizer, pyro.optim.PyroLRScheduler):
            self.optimizer.step()


def _total(loss: Any, batch: Batch) -> Tensor:
    parts = loss if isinstance(loss, tuple) else (loss,)
    return torch.as_tensor(sum(float(part) for part in parts), dtype=torch.get_default_dtype(), device=batch[0].device)


def make_optimizer(optimizer: Any, params: Params, lr: float) -> torch.optim.Optimizer:
    """Return a torch optimizer over ``params``: Adam by default, the user's own, or what the user's factory makes.

    Raises:
        ValueError: when it does not cover exactly the pair's parameters.
    """
    if optimizer is None:
        return torch.optim.Adam(params.values(), lr=lr)
    if isinstance(optimizer, torch.optim.Optimizer):
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [name for name, p in params.items() if id(p) not in held]
        stray = held - {id(p) for p in params.values()}
        if stray:
            raise ValueError(
                f"the optimizer holds {len(stray)} parameters that are not the pair's: make it over the pair's alone"
            )
        if missing:
            raise ValueError(
                f"the optimizer does not hold the pair's parameter {missing[0]!r} ({len(missing)} in all): pass a "
                "function of the parameters, such as lambda params: torch.optim.Adam(params, lr=1e-3)"
            )
        return optimizer
    if not callable(optimizer):
        raise ValueError(
            f"optimizer must be a torch or Pyro optimizer, or a function that makes one, got {optimizer!r}"
        )
    made: Callable[..., Any] = optimizer
    built = made(list(params.values()), lr=lr) if isinstance(optimizer, type) else made(list(params.values()))
    if not isinstance(built, torch.optim.Optimizer):
        raise ValueError(f"optimizer must make a torch.optim.Optimizer, got {type(built).__name__}")
    return built
