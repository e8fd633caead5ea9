"""Base class of likelihoods: an object that turns a decoder's features into the distribution of an observation."""

from abc import abstractmethod

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.common.checks import not_a_class, shown
from pyrovae.likelihoods.missing import PartlyObserved
from pyrovae.nn import Shape
from pyrovae.nn.network import as_shape


class Likelihood(nn.Module):
    """Returns p(x | z) from decoder features ``[..., P * D]``, with one event dimension.

    The D columns of an observation are independent given z. A likelihood with several parameters per column takes
    them in blocks of D features, side by side: for pictures, channels on channels.

    A likelihood of counts can take an exposure, one number per observation: time at risk, area, size of a library. It
    is then the last tensor of a batch, beside the data, and means are proportional to it.

    Attributes:
        num_params: P, number of features per column.
        takes_exposure: whether the distribution depends on an exposure.
    """

    num_params = 1
    takes_exposure = False

    @abstractmethod
    def columns(self, features: Tensor) -> TorchDistribution:
        """Return the distribution of every column, batch shape ``[..., D]``, no event dimension."""

    def exposed(self, features: Tensor, exposure: Tensor) -> TorchDistribution:
        """Return the distribution of every column under an exposure ``[..., 1]``, batch shape ``[..., D]``."""
        raise ValueError(f"{type(self).__name__} takes no exposure, which likelihoods of counts do")

    def with_exposure(self, features: Tensor, exposure: Tensor | None) -> TorchDistribution:
        """Return the distribution of every column, under an exposure where the likelihood takes one.

        Raises:
            ValueError: for an exposure that is missing, or that the likelihood does not take.
        """
        if self.takes_exposure and exposure is None:
            raise ValueError(
                f"{type(self).__name__} takes an exposure, the last tensor of a batch: pass data as (x, exposure)"
            )
        if exposure is None:
            return self.columns(features)
        return self.exposed(features, exposure if exposure.shape[-1:] == (1,) else exposure[..., None])

    def forward(
        self, features: Tensor, mask: Tensor | None = None, *, exposure: Tensor | None = None
    ) -> TorchDistribution:
        """Return the distribution of x, batch shape ``[...]`` and event shape ``[D]``.

        Args:
            features: features of the decoder, ``[..., P * D]``.
            mask: which values are observed, broadcasting against ``[..., D]``; the others do not count in
                ``log_prob``, whatever stands in their place. None: all are observed.
            exposure: exposure of every observation, ``[..., 1]``, above 0, where the likelihood takes one.
        """
        columns = self.with_exposure(features, exposure)
        return (columns if mask is None else PartlyObserved(columns, mask)).to_event(1)

    def features(self, shape: Shape) -> Shape:
        """Return the shape of the features that a decoder has to return for data of this shape."""
        shape = as_shape(shape)
        if isinstance(shape, int):
            return self.num_params * shape
        return (self.num_params * shape[0], *shape[1:])

    def params(self, features: Tensor) -> tuple[Tensor, ...]:
        """Split features ``[..., P * D]`` into the P parameters of every column, each ``[..., D]``."""
        if features.shape[-1] % self.num_params:
            raise ValueError(
                f"{type(self).__name__} takes {self.num_params} features per column, got {features.shape[-1]} in all: "
                "make the decoder with likelihood.features(shape) as its out_shape"
            )
        return features.chunk(self.num_params, dim=-1)


def check_likelihood(name: str, likelihood: Likelihood) -> None:
    """Check that ``likelihood`` is an instance of a subclass of :class:`Likelihood`, and not a class.

    Raises:
        ValueError: if not; the message says what to write.
    """
    not_a_class(name, likelihood)
    if not isinstance(likelihood, Likelihood):
        raise ValueError(f"{name} must be a Likelihood, such as likelihoods.Poisson(), got {shown(likelihood)}")
