"""Base class of our objectives: a ``pyro.infer.ELBO`` that sees the log weights of each observation.

Pyro's objectives for several particles put the plate's subsample scale inside their log-sum-exp, and weigh whole
batches where a site lies outside the plate. Here the pair is read first, log densities are computed per observation
without any scale, and the scale of a subsampled plate multiplies the finished objective.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.distributions.traits import can_score
from pyrovae.objectives.schedules import Schedule, unfinished
from pyrovae.programs.broadcast import broadcasts, density_once, flattened, guide_once, repeated
from pyrovae.programs.densities import PARTICLES, log_density, plate_size
from pyrovae.programs.handlers import Repeated, Unrecorded, is_recorded
from pyrovae.programs.isolation import same_streams
from pyrovae.programs.layout import Layout
from pyrovae.programs.pair import Pair
from pyrovae.programs.sites import beside_densities, data_frames, sample_sites
from pyrovae.programs.types import Batch, Program, Trace

Weight = float | Schedule
"""A number, or a function of the gradient step (from 0) that returns one."""


@dataclass(frozen=True)
class Known:
    """What is read from a pair once, on its first batch.

    Attributes:
        layout: layout of the pair.
        fixed: whether the data plate says how many observations there are, so that a batch stands for all of them.
        broadcasts: whether the guide can be run once per observation, under a plate of particles.
    """

    layout: Layout
    fixed: bool
    broadcasts: bool


class Drawn:
    """Particles of a batch, and their log densities.

    Attributes:
        batch: what the programs were run on.
        rows: the batch, with each observation repeated once per particle.
        guide_trace: trace of the guide: each observation once per particle, or under a plate of particles.
        flat: the guide's draws, each observation once per particle.
        model_trace: trace of the model, with these draws as its latents.
        log_q: log q(z | x), ``[K, N]``, in nats.
        log_p: log p(x, z), ``[K, N]``, in nats.
        scale: number of observations that the batch stands for, divided by the number that it holds.
        leaves: draws of the guide at which a gradient can be taken, in the guide's own layout, by site; empty unless
            ``cut``.
    """

    def __init__(
        self, programs: tuple[Program, Program], batch: Batch, particles: int, known: Known, *, once: bool, cut: bool
    ) -> None:
        model, self._guide = programs
        self.batch, self.known = batch, known
        self.rows = repeated(batch, particles) if particles > 1 else batch
        self.shape = particles, len(batch[0])
        self._nesting, self._once = known.layout.nesting, once and known.broadcasts and particles > 1
        with Repeated(known.layout.plate):
            if self._once:
                self.guide_trace = guide_once(self._guide, batch, *self._plates)
            else:
                self.guide_trace = poutine.trace(self._guide).get_trace(*self.rows)
            self.log_q = self._density(self.guide_trace)
            self.leaves = {name: _leaf(site["value"]) for name, site in self._sites() if cut}
            self.flat = self._flat(self._with(self.leaves) if cut else self.guide_trace)
            self.model_trace = poutine.trace(poutine.replay(model, trace=self.flat)).get_trace(*self.rows)
        self.log_p = self._by_particle(log_density(self.model_trace, len(self.rows[0])))
        full = plate_size(self.model_trace, known.layout.plate)
        self.scale = full / len(batch[0]) if known.fixed else 1.0

    @property
    def _plates(self) -> tuple[int, int]:
        return self.shape[0], self._nesting

    def _sites(self) -> list[tuple[str, Any]]:
        return list(sample_sites(self.guide_trace))

    def _density(self, trace: Trace) -> Tensor:
        if self._once:
            return density_once(trace, *self.shape)
        return self._by_particle(log_density(trace, len(self.rows[0])))

    def _flat(self, trace: Trace) -> Trace:
        return flattened(trace) if self._once else trace

    def _with(self, values: dict[str, Tensor]) -> Trace:
        trace = poutine.Trace()
        for name, site in self._sites():
            trace.add_node(name, **{**site, "value": values[name]})
        return trace

    def _by_particle(self, densities: Tensor) -> Tensor:
        return densities.unflatten(0, (self.shape[1], self.shape[0])).T

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) - log q(z | x), ``[K, N]``, in nats."""
        return self.log_p - self.log_q

    @cached_property
    def log_q_of_leaves(self) -> Tensor:
        """Log q(leaves | x), ``[K, N]``, as a function of the guide's parameters, with its draws fixed.

        A single site is scored by the distribution from which it was drawn. With several sites, the distribution of one
        may depend on the draw of another, so the guide is run again with its draws given.
        """
        if len(self.leaves) == 1:
            return self._density(self._with(self.leaves))
        with Unrecorded(), Repeated(self.known.layout.plate):
            replay = poutine.replay(self._guide, trace=self._with(self.leaves))
            trace = (
                guide_once(replay, self.batch, *self._plates)
                if self._once
                else poutine.trace(replay).get_trace(*self.rows)
            )
        return self._density(trace)

    def along_draws(self, value: Tensor) -> Tensor:
        """Return a number whose gradient is d value / d z * d z / d phi, for a ``value`` that depends on the leaves."""
        leaves = {name: leaf for name, leaf in self.leaves.items() if leaf.requires_grad}
        grads = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True)
        draws = [site["value"] for name, site in self._sites() if name in leaves]
        terms = [(g.detach() * z).sum() for g, z in zip(grads, draws, strict=True) if g is not None]
        return torch.stack(terms).sum()


class Beside(Messenger):
    """Hides what a program has beside its densities (factors, sites that a guide observes), and adds it up.

    Attributes:
        total: sum of these terms over the data that the batch stands for, in nats, averaged over the particles; runs
            under :class:`Unrecorded` do not count.

    Args:
        role: role of the program, "model" or "guide".
        num_data: length of the batch.
        plate: name of the data plate; None while the pair is read, when nothing is added up.
        fixed: whether the data plate says how many observations there are.
        particles: number of times that each observation stands in a batch.

    Raises:
        ValueError: for a term outside the data plate if each observation stands several times in the batch, since it is
            unknown whether the term belongs to the data.
    """

    def __init__(self, role: str, num_data: int, plate: str | None, fixed: bool, particles: int = 1) -> None:
        super().__init__()
        self.role, self.num_data, self.plate, self.fixed = role, num_data, plate, fixed
        self.particles = particles
        self.total: Tensor | float = 0.0

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) and beside_densities(msg, self.role):
            msg["stop"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.plate is None or site_is_subsample(msg) or not beside_densities(msg, self.role) or not is_recorded():
            return
        copies, frames = 1.0, data_frames(msg)
        if self.particles > 1 and not {self.plate, PARTICLES} & {frame.name for frame in frames}:
            raise ValueError(
                f"site {msg['name']!r} of the {self.role} is outside the data plate, and each observation stands "
                f"{self.particles} times in a batch: put it into the plate, or use num_particles=1, or Trace_ELBO"
            )
        for frame in frames:
            if frame.name == PARTICLES:
                copies *= frame.size
            elif frame.name == self.plate and not self.fixed:
                copies *= frame.size / self.num_data
        term = scale_and_mask(msg["fn"].log_prob(msg["value"]), msg["scale"], msg["mask"])
        self.total = self.total + term.sum() / copies


class _Apart:
    """A program whose terms beside its densities are collected separately; any attribute is the program's own."""

    def __init__(self, program: Program, beside: Beside) -> None:
        self.program, self.beside = program, beside

    def __call__(self, *batch: Tensor) -> Any:
        with self.beside:
            return self.program(*batch)

    def __getattr__(self, name: str) -> Any:
        if "program" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["program"], name)


class Objective(ELBO):
    """An objective of each observation's log densities, for ``pyro.infer.SVI`` and for :func:`pyrovae.fit`.

    ``loss`` is summed over the batch and scaled as the data plate says, as for any ``pyro.infer.ELBO``. What programs
    have beside their densities (``pyro.factor``, sites that a guide observes) is included unweighted, as in Pyro's
    ELBOs: the model's is added, the guide's is subtracted. An instance belongs to one pair, which it reads on the first
    batch.

    Args:
        num_particles: K, number of draws of the guide per observation.

    Attributes:
        own: module of what the objective holds itself: weights that change over training time, and second networks.
        optimizer: optimizer of the second networks, if there are any; it takes its steps beside that of the pair.
    """

    reparametrised = True  # whether every latent must be reparametrised

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=at_least("num_particles", num_particles, 1))
        self.own = nn.Module()
        self.optimizer: torch.optim.Optimizer | None = None
        self._weights: dict[str, Weight] = {}
        self._known: Known | None = None
        self._step = 0

    @abstractmethod
    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the objective summed over the data that the batch stands for, to be maximised."""

    def weigh(self, **weights: Weight) -> None:
        """Store weights, each a number or a function of the step; :meth:`weight` returns their values."""
        for name, weight in weights.items():
            if not callable(weight) and (isinstance(weight, bool) or not isinstance(weight, Real)):
                raise ValueError(f"{name} must be a number or a function of the step, got {weight!r}")
            self._weights[name] = weight
            self.own.register_buffer(name, torch.tensor(0.0))
        self.at(0)

    def weight(self, name: str) -> Tensor:
        """Return a weight's value at the present step, a tensor without dimensions."""
        value: Tensor = getattr(self.own, name)
        return value

    def at(self, step: int) -> dict[str, float]:
        """Set every weight to its value at a gradient step, and return the values by name.

        :func:`pyrovae.fit` calls this before each step; with ``SVI`` the objective counts the steps itself.
        """
        self._step = step
        values: dict[str, float] = {}
        for name, weight in self._weights.items():
            value = weight(step) if callable(weight) else weight
            if not isinstance(value, Real | Tensor):
                raise ValueError(f"{name} must be a number, got {value!r} at step {step}")
            values[name] = float(value)
            if not abs(values[name]) < float("inf"):
                raise ValueError(f"{name} must be a finite number, got {values[name]} at step {step}")
            if values[name] < 0:
                raise ValueError(f"{name} must be at least 0, got {values[name]} at step {step}")
            self.weight(name).fill_(values[name])
        return values

    def unfinished(self, num_steps: int) -> list[str]:
        """Return a sentence for each weight that is still changing at the last of ``num_steps`` steps."""
        sentences = (unfinished(name, weight, num_steps) for name, weight in self._weights.items() if callable(weight))
        return [sentence for sentence in sentences if sentence]

    def differentiable_loss(self, model: Program, guide: Program, *batch: Tensor) -> Tensor:
        """Return the negative objective, summed over the data that the batch stands for; its gradient fits the pair."""
        if self._known is None:
            self._known = self._read(model, guide, batch)
        if any(t.device != batch[0].device for t in (*self.own.buffers(), *self.own.parameters())):
            self.own.to(batch[0].device)
        known, size = self._known, len(batch[0])
        beside = [
            Beside(role, size, known.layout.plate, known.fixed, self.num_particles) for role in ("model", "guide")
        ]
        total = self.total(_Apart(model, beside[0]), _Apart(guide, beside[1]), batch, known)
        return beside[1].total - beside[0].total - total

    def loss(self, model: Program, guide: Program, *batch: Tensor) -> float:
        """Return the loss as a number."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *batch))

    def loss_and_grads(self, model: Program, guide: Program, *batch: Tensor) -> float:
        """Return the loss and leave its gradient with the parameters; second networks take their step at once."""
        self.at(self._step)
        loss = self.differentiable_loss(model, guide, *batch)
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self._step += 1
        return float(loss.detach())

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """Not used: particles are drawn by :class:`Drawn`."""
        raise NotImplementedError

    def draw(
        self, model: Program, guide: Program, batch: Batch, known: Known, *, once: bool = True, cut: bool = False
    ) -> Drawn:
        """Draw particles.

        Args:
            model: generative program.
            guide: recognition program.
            batch: batch of data.
            known: what is known of the pair.
            once: whether a guide that allows it is run once per observation rather than once per particle.
            cut: whether the model gets draws at which a gradient can be taken, detached from the guide.
        """
        return Drawn((model, guide), batch, self.num_particles, known, once=once, cut=cut)

    def _read(self, model: Program, guide: Program, batch: Batch) -> Known:
        objective = type(self).__name__
        model, guide = (
            _Apart(program, Beside(role, len(batch[0]), None, False))
            for program, role in ((model, "model"), (guide, "guide"))
        )
        with same_streams(batch[0].device), Unrecorded(), torch.no_grad():
            layout, model_trace, guide_trace = Pair(model, guide).read(batch)
            layout.require_per_datum()
            if layout.summed:
                raise ValueError(
                    f"latent site {layout.summed[0]!r} is to be summed out, for which there is TraceEnum_ELBO"
                )
            full = plate_size(model_trace, layout.plate)
            for trace in (model_trace, guide_trace):
                for name, site in sample_sites(trace):
                    inside = any(frame.name == layout.plate for frame in data_frames(site))
                    expected = full / len(batch[0]) if inside else 1.0
                    scale = site["scale"]
                    if isinstance(scale, Tensor) or abs(scale - expected) > 1e-6 * expected:
                        raise ValueError(
                            f"site {name!r} carries a scale besides that of the data plate, which {objective} takes "
                            "off: use Trace_ELBO, or an objective with weights of its own"
                        )
            if self.reparametrised:
                for name, site in sample_sites(guide_trace):
                    if not site["fn"].has_rsample:
                        raise ValueError(
                            f"latent site {name!r} is not reparametrised, so {objective} has no gradient for it: use "
                            "VIMCO or Trace_ELBO, or sum it out with TraceEnum_ELBO"
                        )
            self.check(layout, model_trace, guide_trace)
            with Repeated():
                double_trace = poutine.trace(guide).get_trace(*repeated(batch, 2))
                fixed = full != len(batch[0]) or plate_size(double_trace, layout.plate) == full
            can_broadcast = self.num_particles > 1 and broadcasts(guide, batch, 2, layout.nesting)
        return Known(layout, fixed, can_broadcast)

    def check(self, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
        """Refuse a pair that the objective is not defined for, given both traces of its first batch."""


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_() if value.is_floating_point() else value


def require_scorable(objective: str, guide_trace: Trace, why: str) -> None:
    """Refuse a guide that cannot score an externally supplied z.

    Raises:
        ValueError: for such a guide; the message names the site.
    """
    for name, site in sample_sites(guide_trace):
        is_scorable = can_score(site["fn"])
        try:
            site["fn"].log_prob(site["value"].clone())
        except (KeyError, NotImplementedError):
            is_scorable = False
        if not is_scorable:
            raise ValueError(
                f"{objective} needs the density of {name!r} {why}, and this guide knows that of its own draws alone: "
                "use another guide, or another objective"
            )


def surrogate(value: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Return a number with the value of ``value`` and the gradient of the sum of ``gradients``."""
    total = torch.stack(list(gradients)).sum()
    return value.detach() + total - total.detach()
