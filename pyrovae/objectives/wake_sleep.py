"""Reweighted wake-sleep."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common.checks import at_least, share
from pyrovae.objectives.importance import grouped, normalised
from pyrovae.objectives.objective import Known, Objective, require_scorable, surrogate
from pyrovae.programs.densities import log_density
from pyrovae.programs.handlers import Unrecorded
from pyrovae.programs.isolation import same_streams
from pyrovae.programs.layout import Layout
from pyrovae.programs.modules import reachable_modules
from pyrovae.programs.sites import as_observed, released, sample_sites
from pyrovae.programs.types import Batch, Program, Trace


class WakeSleep(Objective):
    """Reweighted wake-sleep: the model maximises a bound, the guide lowers KL(p || q), on data and on dreams.

    With normalised weights v_k of K particles per observation, and (z, x) drawn from the model as a dream::

        wake theta:  gradient of sum_k v_k log p(x, z_k)      (that of the importance-weighted bound)
        wake phi:    gradient of sum_k v_k log q(z_k | x)
        sleep phi:   gradient of log q(z | x) on dreams

    Where values of the data are missing, they are missing in the dreams as well. The gradient of wake phi is biased
    towards zero; the bias is of order 1/K, and strong where q misses the posterior. The gradient of wake theta is that
    of a bound, and the gradient of sleep phi is unbiased.

    No latent has to be reparametrised. The loss is that of the importance-weighted bound; the guide follows the
    gradient of another function. The guide lowers KL(p || q), so it covers more than the posterior, not less.

    Source: Bornschein and Bengio, "Reweighted wake-sleep", 2015; Hinton, Dayan, Frey and Neal, "The wake-sleep
    algorithm", 1995; Le, Kosiorek, Siddharth, Teh and Wood, "Revisiting reweighted wake-sleep", 2019.

    Args:
        num_particles: K, number of particles per observation, at least 2.
        sleep: weight of sleep phi, between 0 and 1; the rest is the weight of wake phi.
    """

    reparametrised = False

    def __init__(self, num_particles: int = 5, *, sleep: float = 0.0) -> None:
        super().__init__(at_least("num_particles", num_particles, 2))
        self.sleep = sleep if callable(sleep) else share("sleep", sleep)
        self.weigh(sleep=sleep)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the bound, summed over the data that the batch stands for."""
        cut = torch.is_grad_enabled()
        particles = self.draw(model, guide, batch, known, cut=cut)
        log_weights = particles.log_weights
        value = grouped(log_weights, 1).sum()
        if cut:
            weights, sleep = normalised(log_weights, 1), self.weight("sleep")
            terms = [(weights * particles.log_p).sum(), (1 - sleep) * (weights * particles.log_q_of_leaves).sum()]
            if self.sleep != 0:
                terms.append(sleep * self._on_dreams(model, guide, batch, known))
            value = surrogate(value, terms)
        return particles.scale * value

    def _on_dreams(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return log q(z | x) summed over one dream per observation."""
        with Unrecorded():
            latents, dreams = self._dream(model, batch, known)
            trace = poutine.trace(poutine.replay(guide, trace=latents)).get_trace(*dreams)
        return log_density(trace, len(batch[0])).sum()

    def _dream(self, model: Program, batch: Batch, known: Known) -> tuple[Trace, Batch]:
        """Draw latents and data from the model; return both, the data in the form of the batch."""
        with torch.no_grad():
            dream = poutine.trace(released(model)).get_trace(*batch)
        for site in known.layout.observed:
            reading, node = site.required_reading(), dream.nodes[site.name]
            data = reading.of(batch)
            batch = reading.into(batch, as_observed(node, node["value"].to(data.dtype), data))
        latents = poutine.Trace()
        for name, latent in sample_sites(dream):
            if name in known.layout.latents:
                latents.add_node(name, **latent)
        return latents, batch

    def _see_that_dreams_are_whole(self, model: Program, batch: Batch, known: Known) -> None:
        """Refuse a model whose draws of data depend on the data that it is given: one run cannot draw such data.

        Raises:
            ValueError: if the same latents give the dream another distribution once the dream itself is given.
        """
        latents, dreams = self._dream(model, batch, known)
        before, after = (poutine.trace(poutine.replay(model, trace=latents)).get_trace(*one) for one in (batch, dreams))
        for site in known.layout.observed:
            value = after.nodes[site.name]["value"]
            one, other = (trace.nodes[site.name]["fn"].log_prob(value) for trace in (before, after))
            if not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True):
                raise ValueError(
                    f"the model's distribution of {site.name!r} depends on what it observes, so that one run of it "
                    "makes no dream: use sleep=0"
                )

    def _read(self, model: Program, guide: Program, batch: Batch) -> Known:
        known = super()._read(model, guide, batch)
        if self.sleep != 0:  # a guide that takes only the data it was made with raises its error now
            with same_streams(batch[0].device), torch.no_grad(), pyro.validation_enabled(True):
                self._on_dreams(model, guide, batch, known)
                with Unrecorded():
                    if known.layout.feeds_back:
                        self._see_that_dreams_are_whole(model, batch, known)
                        with _moved(model):  # a weight that starts at zero hides what it will do
                            self._see_that_dreams_are_whole(model, batch, known)
        return known

    def check(self, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
        """Refuse a guide that cannot score an externally supplied z, and dreams that cannot take the data's place."""
        require_scorable("WakeSleep", guide_trace, "at draws of another distribution")
        if layout.auxiliary:
            raise ValueError(f"WakeSleep has no draws for the guide's auxiliary site {layout.auxiliary[0]!r}: use IWAE")
        if self.sleep != 0:
            for site in layout.observed:
                site.required_reading()


@contextmanager
def _moved(model: Program) -> Iterator[None]:
    """Move all parameters of a model a little, at random, inside the block."""
    store = pyro.get_param_store()
    leaves = [store[name].unconstrained() for name in store]
    leaves += [p for module in reachable_modules(model, "model").values() for p in module.parameters()]
    before = {p: p.detach().clone() for p in leaves if p.is_floating_point()}
    try:
        for p in before:
            p.data.add_(0.1 * torch.randn_like(p))
        yield
    finally:
        for p, value in before.items():
            p.data.copy_(value)
