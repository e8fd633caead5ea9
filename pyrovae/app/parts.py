"""The parts that options name, made for the data."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pyro.infer import ELBO
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrovae.common.checks import at_least
from pyrovae.common.interrupts import is_interrupt
from pyrovae.data import Data, Table
from pyrovae.guides import Guide
from pyrovae.likelihoods import Bernoulli, Likelihood, Missing
from pyrovae.nn import Network, Observed, Shape, SideBySide, size
from pyrovae.nn import Table as TableEncoder
from pyrovae.priors import Prior

GuideMaker = Callable[[Network, int], Guide]
ObjectiveMaker = Callable[[], ELBO]
SchedulerMaker = Callable[[Optimizer], LRScheduler]


@dataclass(frozen=True)
class Parts:
    """What options name, and the training data that sizes are taken from.

    Attributes:
        data: training data.
        latent_dim: number of latents.
        prior: makes the prior of so many latents.
        likelihood: makes the likelihood; None takes the one that a table proposes, else a Bernoulli.
        encoder: makes a network from an observation of a shape to a number of features.
        decoder: makes a network from a number of latents to the likelihood's features.
        features: number of features that the encoder returns.
        guide: makes the guide of a latent from its encoder and the latent's size; None lets the model choose.
        embedding: length of the vectors that an encoder is given for categories; None shows them one-hot.
    """

    data: Data
    latent_dim: int
    prior: Callable[[int], Prior]
    likelihood: Callable[[], Likelihood] | None
    encoder: Callable[[Shape, Shape], Network]
    decoder: Callable[[Shape, Shape], Network]
    features: int
    guide: GuideMaker
    embedding: int | None = None

    @cached_property
    def p_x(self) -> Any:
        """The likelihood; where values are missing, they do not count."""
        if self.likelihood is None and isinstance(self.data, Table):
            return self.data.likelihood()
        likelihood = Bernoulli() if self.likelihood is None else self.likelihood()
        return Missing(likelihood) if self.data.missing else likelihood

    def p_z(self, latent_dim: int | None = None) -> Prior:
        """Make the prior."""
        return self.prior(at_least("latent_dim", self.latent_dim if latent_dim is None else latent_dim, 1))

    def decoding(self, num_latents: int, more: int = 0) -> Any:
        """Make a decoder of latents and ``more`` columns beside them."""
        network = self.decoder(num_latents + more, self.p_x.features(self.data.shape))
        return network if not more or _takes_several(network) else SideBySide(network)

    def encoding(self, more: int = 0) -> Any:
        """Make an encoder of an observation and ``more`` columns beside it; it takes missing values where there are.

        Raises:
            ValueError: for columns beside a picture, where the encoder takes pictures alone.
        """
        shape = self.data.shape
        if isinstance(self.data, Table):
            how: dict[str, Any] = {"exposure": self.data.typical_exposure, "embedding": self.embedding}
            return TableEncoder(lambda width: self._checked(width, more), self.data.inputs, **how)
        if self.data.missing:
            doubled = 2 * shape if isinstance(shape, int) else (2 * shape[0], *shape[1:])
            return Observed(self._checked(doubled, more))
        return self._checked(shape, more)

    def _checked(self, shape: Shape, more: int) -> Network:
        network = self.encoder(shape, self.features)
        if not more:
            return network
        if not _takes_several(network):
            raise ValueError(
                f"the encoder {type(network).__name__} takes an observation alone, and this model's takes {more} "
                "columns beside it: use MLP"
            )
        return self.encoder(size(shape) + more, self.features)

    def hidden(self, in_features: int, out_features: int) -> Network:
        """Make a network inside the model or the guide, of the encoder's kind where that takes vectors."""
        return self.decoder(in_features, out_features)


def _takes_several(network: Network) -> bool:
    kinds = [p.kind for p in inspect.signature(network.forward).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


@contextmanager
def made_by_options() -> Iterator[None]:
    """Turn an error inside the block into one that says that options alone cannot make the part.

    Raises:
        ValueError: in one sentence.
    """
    try:
        yield
    except (TypeError, RuntimeError, MemoryError, OverflowError) as error:  # a missing option, or too little memory
        if is_interrupt(error):
            raise KeyboardInterrupt from error
        raise ValueError(
            f"a part cannot be made from options alone: {error}: make it in Python, or use another"
        ) from None


def made(objective: ObjectiveMaker) -> ELBO:
    """Make an objective."""
    with made_by_options():
        return objective()
