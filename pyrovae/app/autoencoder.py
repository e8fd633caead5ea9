"""A variational autoencoder and its guide, made from the parts that options name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyro.infer import ELBO

from pyrovae.common.checks import at_least
from pyrovae.data import Data
from pyrovae.guides import Guide
from pyrovae.likelihoods import Likelihood, Missing
from pyrovae.models import VAE
from pyrovae.nn import Network, Observed, Shape
from pyrovae.priors import Prior, VampPrior
from pyrovae.programs.isolation import random_state

GuideMaker = Callable[[Network, int], Guide]
ObjectiveMaker = Callable[[], ELBO]


def autoencoder(
    data: Data,
    guide: GuideMaker,
    *,
    latent_dim: int,
    prior: Callable[[int], Prior],
    likelihood: Callable[[], Likelihood],
    encoder: Callable[[Shape, Shape], Network],
    decoder: Callable[[Shape, Shape], Network],
    features: int,
    seed: int,
) -> tuple[VAE, Guide]:
    """Build a VAE and its guide for data; equal seeds give equal initial models.

    Where values are missing, likelihood and encoder take that into account.
    """
    with random_state("initial values", seed), made_by_options():
        p_z, p_x = prior(at_least("latent_dim", latent_dim, 1)), likelihood()
        model = VAE(
            prior=p_z,
            decoder=decoder(latent_dim, p_x.features(data.shape)),
            likelihood=Missing(p_x) if data.missing else p_x,
        )
        network = Observed(encoder(_doubled(data.shape), features)) if data.missing else encoder(data.shape, features)
        instance = guide(network, latent_dim)
        if isinstance(p_z, VampPrior):
            p_z.attach(instance, data)
        return model, instance


@contextmanager
def made_by_options() -> Iterator[None]:
    """Turn an error inside the block into one that says that options alone cannot make the part.

    Raises:
        ValueError: in one sentence.
    """
    try:
        yield
    except (TypeError, RuntimeError, MemoryError, OverflowError) as error:  # a missing option, or too little memory
        raise ValueError(
            f"a part cannot be made from options alone: {error}: make it in Python, or use another"
        ) from None


def made(objective: ObjectiveMaker) -> ELBO:
    """Make an objective."""
    with made_by_options():
        return objective()


def _doubled(shape: Shape) -> Shape:
    """Return the shape of data together with the mask of observed values."""
    return 2 * shape if isinstance(shape, int) else (2 * shape[0], *shape[1:])
