"""Objectives with a second network that tells two samples apart: FactorVAE, adversarial autoencoders, VAE-GAN."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pyrovae.common.checks import shown
from pyrovae.nn.network import check_module
from pyrovae.objectives.aggregate import from_prior, latents, permuted
from pyrovae.objectives.elbo import is_masked, kl_by_site, reconstruction
from pyrovae.objectives.objective import Known, Objective, Weight
from pyrovae.programs.layout import Layout
from pyrovae.programs.types import Batch, Program, Trace

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def adam(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the default optimizer of a discriminator: Adam, as in the paper on FactorVAE."""
    return torch.optim.Adam(params, lr=1e-4, betas=(0.5, 0.9))


class Adversarial(Objective):
    """An objective with a discriminator, trained beside the pair by an optimizer of its own.

    One gradient is taken of both losses: the pair does not see the discriminator's loss, and the discriminator does not
    see the pair's.

    Args:
        discriminator: network from what it evaluates, ``[N, D]``, to a logit, ``[N, 1]``.
        optimizer: function that makes the discriminator's optimizer from its parameters.
    """

    def __init__(self, discriminator: nn.Module, optimizer: MakeOptimizer = adam) -> None:
        super().__init__()
        check_module("discriminator", discriminator)
        if not any(True for _ in discriminator.parameters()):
            raise ValueError(f"discriminator must have parameters to train, got {shown(discriminator)}")
        if not callable(optimizer):
            raise ValueError(
                "optimizer must be a function that makes one from parameters, such as torch.optim.Adam, got "
                f"{shown(optimizer)}"
            )
        try:
            self.optimizer = optimizer(discriminator.parameters())
        except TypeError as error:  # from a function that takes something else
            raise ValueError(f"optimizer must make a torch.optim.Optimizer from parameters alone: {error}") from None
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise ValueError(f"optimizer must make a torch.optim.Optimizer, got {shown(self.optimizer)}")
        self.own.discriminator = discriminator

    @property
    def discriminator(self) -> nn.Module:
        """The second network."""
        network: nn.Module = self.own.get_submodule("discriminator")
        return network

    def critic(self, values: Tensor) -> Tensor:
        """Return the discriminator's logits, ``[N]``, with a gradient for the values only."""
        network = self.discriminator
        tensors = {name: tensor.detach() for name, tensor in (*network.named_parameters(), *network.named_buffers())}
        out: Tensor = functional_call(network, tensors, (values,))
        return out.reshape(len(values))

    def told_apart(self, first: Tensor, second: Tensor) -> Tensor:
        """Return minus the discriminator's mean loss in nats: ``first`` should get positive logits, ``second`` not."""
        logits = self.discriminator(torch.cat([first, second]).detach()).reshape(-1)
        truth = torch.cat([torch.ones(len(first)), torch.zeros(len(second))]).to(logits)
        return -F.binary_cross_entropy_with_logits(logits, truth)

    def check(self, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
        """Check that the discriminator takes the latents of the pair, and that none is masked."""
        self.check_masks(layout.latents, model_trace, guide_trace)
        self.check_network(latents(guide_trace, layout, layout.num_data))

    def check_masks(self, names: Iterable[str], *traces: Trace) -> None:
        """Refuse sites with masks, because a discriminator knows nothing of masks.

        Raises:
            ValueError: for such a site; the message names it.
        """
        for name in names:
            if any(is_masked(trace.nodes[name]) for trace in traces if name in trace.nodes):
                raise ValueError(
                    f"site {name!r} is masked, and the discriminator of {type(self).__name__} would see what is "
                    "masked like the rest: leave those data out, or use another objective"
                )

    def check_network(self, values: Tensor) -> None:
        """Refuse a discriminator that does not give one logit per row.

        Raises:
            ValueError: for such a discriminator; the message says what it takes and gives.
        """
        self.own.to(values.device, values.dtype)
        try:
            shape: Any = tuple(self.discriminator(values).shape)
        except RuntimeError as error:
            shape = error
        if shape not in ((len(values), 1), (len(values),)):
            raise ValueError(
                f"the discriminator must take {values.shape[1]} numbers and give one logit, but on "
                f"{tuple(values.shape)} it gives {shape}"
            )


class FactorVAE(Adversarial):
    """The ELBO minus g TC(q(z)), with the total correlation from a discriminator's density ratio.

    The discriminator tells draws of q(z) from the same draws with each latent shuffled over the batch, so that its
    logit on draws estimates log q(z) / prod_j q(z_j). This is a surrogate, and only as good as the discriminator.

    Source: Kim and Mnih, "Disentangling by factorising", 2018.

    Args:
        discriminator: network from all latents, ``[N, D]``, to a logit, ``[N, 1]``.
        total_correlation: weight g: a number or a function of the step.
        optimizer: function that makes the discriminator's optimizer from its parameters.
    """

    def __init__(
        self, discriminator: nn.Module, *, total_correlation: Weight = 10.0, optimizer: MakeOptimizer = adam
    ) -> None:
        super().__init__(discriminator, optimizer)
        self.total_correlation = total_correlation
        self.weigh(total_correlation=total_correlation)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the objective, summed over the data that the batch stands for, plus the discriminator's."""
        particles = self.draw(model, guide, batch, known)
        z = latents(particles.flat, known.layout, len(batch[0]))
        kl = torch.stack(list(kl_by_site(particles, analytic=True).values())).sum(0)
        value = (reconstruction(particles) - kl - self.weight("total_correlation") * self.critic(z)).sum()
        return particles.scale * value + self.told_apart(z, permuted(z.detach()))


class AdversarialAutoencoder(Adversarial):
    """E_q[log p(x | z)] + g E_q[log D(z)], where D tells draws of the prior from draws of q(z).

    In place of the KL, q(z) is moved to where D takes it for p(z). Any prior that can be sampled will do. The objective
    is not a bound. The guide may be of any family, because its density is not used.

    A learned prior gets no gradient, because its density is not used; one whose draws have no gradient stays as it is.

    Source: Makhzani, Shlens, Jaitly, Goodfellow and Frey, "Adversarial autoencoders", 2016.

    Args:
        discriminator: network from all latents, ``[N, D]``, to a logit, ``[N, 1]``.
        strength: weight g: a number or a function of the step.
        optimizer: function that makes the discriminator's optimizer from its parameters.
    """

    def __init__(self, discriminator: nn.Module, *, strength: Weight = 1.0, optimizer: MakeOptimizer = adam) -> None:
        super().__init__(discriminator, optimizer)
        self.strength = strength
        self.weigh(strength=strength)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the objective, summed over the data that the batch stands for, plus the discriminator's."""
        particles = self.draw(model, guide, batch, known)
        n = len(batch[0])
        z, prior = latents(particles.flat, known.layout, n), latents(from_prior(model, batch), known.layout, n)
        value = (reconstruction(particles) + self.weight("strength") * F.logsigmoid(self.critic(z))).sum()
        return particles.scale * value + self.told_apart(prior, z)


class VAEGAN(Adversarial):
    """A VAE whose reconstructions are compared with the data in the features of a discriminator.

    ::

        - |f(x) - f(x~)|^2 / 2 - KL + g (log D(x~) + log D(x_p))

    with f the discriminator's features, x~ the mean of p(x | z) at draws of the guide and x_p at draws of the prior.
    The discriminator tells data from these means. The objective is not a bound, and its first term is not a log density
    of x.

    Source: Larsen, Sonderby, Larochelle and Winther, "Autoencoding beyond pixels using a learned similarity metric",
    2016.

    Args:
        features: network from the observation, ``[N, D]``, to the features that are compared, ``[N, F]``.
        discriminator: network from those features to a logit, ``[N, 1]``.
        strength: weight g: a number or a function of the step.
        optimizer: function that makes the optimizer of both networks from their parameters.
    """

    def __init__(
        self,
        features: nn.Module,
        discriminator: nn.Module,
        *,
        strength: Weight = 1.0,
        optimizer: MakeOptimizer = adam,
    ) -> None:
        check_module("features", features)
        check_module("discriminator", discriminator)
        super().__init__(nn.Sequential(features, discriminator), optimizer)
        self.strength = strength
        self.weigh(strength=strength)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the objective, summed over the data that the batch stands for, plus the discriminator's."""
        particles = self.draw(model, guide, batch, known)
        (site,) = known.layout.observed
        x = particles.model_trace.nodes[site.name]["value"].flatten(1)
        traces = particles.model_trace, from_prior(model, batch)
        reconstructions, dreams = (_mean(trace, site.name) for trace in traces)
        features: Any = self.own.discriminator[0]  # type: ignore[index]
        tensors = {name: tensor.detach() for name, tensor in (*features.named_parameters(), *features.named_buffers())}
        distance = functional_call(features, tensors, (x,)) - functional_call(features, tensors, (reconstructions,))
        kl = torch.stack(list(kl_by_site(particles, analytic=True).values())).sum(0)
        realism = F.logsigmoid(self.critic(reconstructions)) + F.logsigmoid(self.critic(dreams))
        value = (-0.5 * distance.square().sum(-1) - kl + self.weight("strength") * realism).sum()
        return particles.scale * value + self.told_apart(x, torch.cat([reconstructions, dreams]))

    def check(self, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
        """Refuse masks, and a model with several observed sites or without a mean of its observed site."""
        if len(layout.observed) != 1:
            raise ValueError(f"VAEGAN takes one observed site, got {[site.name for site in layout.observed]}")
        self.check_masks([*layout.latents, layout.observed[0].name], model_trace, guide_trace)
        try:
            self.check_network(_mean(model_trace, layout.observed[0].name))
        except NotImplementedError:
            raise ValueError(
                "VAEGAN needs the mean of p(x | z), which this likelihood does not have in closed form"
            ) from None


def _mean(trace: Trace, name: str) -> Tensor:
    mean: Tensor = trace.nodes[name]["fn"].mean
    return mean.flatten(1)
