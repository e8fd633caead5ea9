"""The semi-supervised variational autoencoder, M2."""

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.common.checks import at_least, flag
from pyrovae.likelihoods import Likelihood
from pyrovae.models.parts import check_decoder, check_latents, optional_size
from pyrovae.nn import Network
from pyrovae.priors import as_prior

MISSING = -1


class SemiSupervisedVAE(nn.Module):
    """A class and a style make an observation; the class is known for some observations.

    For every observation::

        y ~ Categorical(class probabilities)
        z ~ p(z)
        x ~ p(x | decoder(z, y))
        label = y, or -1 where it is missing

    Data are pairs ``(x, labels)``. Labels are whole numbers from 0; -1 marks a missing label. Guide:
    :class:`~pyrovae.guides.ClassConditional`. Objective: :class:`~pyrovae.objectives.SemiSupervisedELBO`, which sums y
    out and trains the classifier on the labels as well, or ``TraceEnum_ELBO``.

    Source: Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep generative models", 2014.

    Args:
        prior: prior of z: a distribution with batch shape ``()``, or a module that returns one.
        decoder: network from z and y (one-hot), as two tensors, to the likelihood's features.
        likelihood: turns those features into the distribution of x.
        num_classes: number of classes.
        learn_probabilities: whether the probabilities of the classes are learned; otherwise they are all equal.
        num_data: number of observations in the whole data set. It is needed for a prior with global latents, because
            then a batch has to count for all observations.
    """

    def __init__(
        self,
        *,
        prior: Any,
        decoder: Network | nn.Module,
        likelihood: Likelihood | nn.Module,
        num_classes: int,
        learn_probabilities: bool = False,
        num_data: int | None = None,
    ) -> None:
        super().__init__()
        prior = as_prior(prior)
        check_decoder(decoder, likelihood)
        self.num_classes = num_classes = at_least("num_classes", num_classes, 2)
        check_latents(prior, decoder, more=num_classes)
        self.num_data = optional_size(num_data)
        self.learn_probabilities = flag("learn_probabilities", learn_probabilities)
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood
        self.class_logits: Tensor
        if learn_probabilities:
            self.class_logits = nn.Parameter(torch.zeros(num_classes))
        else:
            self.register_buffer("class_logits", torch.zeros(num_classes))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Sample y and z, and observe ``x``, ``[N, D]``, and ``labels``, ``[N]``; return y, one-hot."""
        pyro.module("model", self)
        prior = self.prior()
        with pyro.plate("data", self.num_data or x.shape[0], subsample_size=x.shape[0]):
            y: Tensor = pyro.sample("y", dist.OneHotCategorical(logits=self.class_logits))
            z = pyro.sample("z", prior)
            pyro.sample("x", self.likelihood(self.decoder(z, y)), obs=x)
            pyro.sample("label", Reported(y), obs=labels)
        return y


class Reported(dist.TorchDistribution):
    """What is reported about a class: the class itself, or nothing (-1), which says nothing about it.

    The density is that of the class, given whether it is reported; the model says nothing about whether it is. A report
    is false with a probability of e^-80, so that no density is zero. A draw reports every class.

    Args:
        y: the class, one-hot, ``[..., C]``.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    FALSE = -80.0

    def __init__(self, y: Tensor) -> None:
        self.y = y
        super().__init__(y.shape[:-1], validate_args=None)

    @property
    def support(self) -> Constraint:
        """A class, or -1."""
        return constraints.integer_interval(MISSING, self.y.shape[-1] - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Reported":
        """Return the same distribution for a larger batch."""
        return Reported(self.y.expand(*batch_shape, -1))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return the class."""
        with torch.no_grad():
            return self.y.argmax(-1).expand(self._extended_shape(torch.Size(sample_shape)))

    def as_observed(self, drawn: Tensor, data: Tensor) -> Tensor:
        """Return the draws, set to missing where the labels are missing."""
        return torch.where(self.missing_in(data), data, drawn)

    def missing_in(self, data: Tensor) -> Tensor:
        """Return which labels are missing."""
        return data == MISSING

    def log_prob(self, value: Tensor) -> Tensor:
        """Return 0 for a true report and for no report."""
        if self._validate_args:
            self._validate_sample(value)
        classes = torch.arange(self.y.shape[-1], device=value.device)
        true = (self.y * (value[..., None] == classes)).sum(-1)
        return torch.where(value == MISSING, torch.zeros_like(true), self.FALSE * (1 - true))
