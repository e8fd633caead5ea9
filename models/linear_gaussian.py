"""The linear-Gaussian model: a VAE for which every question has an answer in closed form."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least, flag
from pyrovae.nn import positive


class LinearGaussian(nn.Module):
    """Probabilistic principal components (one noise scale) or factor analysis (one noise scale per feature).

    For every observation::

        z ~ N(0, I)
        x ~ N(W z + b, diag(s^2))

    so that x ~ N(b, W W' + diag(s^2)), and z | x is Gaussian with precision I + W' diag(s^-2) W.

    Source: Tipping and Bishop, "Probabilistic principal component analysis", 1999.

    Args:
        latent_dim: number of latents; W starts with entries N(0, 1 / latent_dim).
        data_dim: number of features of x.
        isotropic: whether all features share one noise scale (True) or have one each (False); scales start at 1.

    Example:
        >>> model = LinearGaussian(2, 5)
        >>> model.log_evidence(torch.zeros(7, 5)).shape
        torch.Size([7])
    """

    def __init__(self, latent_dim: int, data_dim: int, *, isotropic: bool = True) -> None:
        super().__init__()
        self.latent_dim = latent_dim = at_least("latent_dim", latent_dim, 1)
        self.data_dim = data_dim = at_least("data_dim", data_dim, 1)
        self.isotropic = flag("isotropic", isotropic)
        self.weight = nn.Parameter(torch.randn(data_dim, latent_dim) / math.sqrt(latent_dim))
        self.bias = nn.Parameter(torch.zeros(data_dim))
        self.raw_scale = nn.Parameter(torch.zeros(1 if isotropic else data_dim))

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the noise of every feature, ``[D]``."""
        return positive(self.raw_scale).expand(self.data_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Sample z and observe ``x``, ``[N, D]``; return z."""
        pyro.module("model", self)
        with pyro.plate("data", x.shape[0]):
            z: Tensor = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1), obs=x)
        return z

    def evidence(self) -> dist.MultivariateNormal:
        """Return the exact distribution of x; its ``log_prob(x)`` is log p(x) in nats per observation, ``[N]``."""
        covariance = self.weight @ self.weight.T + torch.diag(self.scale**2)
        return dist.MultivariateNormal(self.bias, covariance)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x), ``[N]``, in nats per observation."""
        return self.evidence().log_prob(x)

    def precision(self) -> Tensor:
        """Return the precision of z given x, the same for every x, ``[latent_dim, latent_dim]``."""
        scaled = self.weight / self.scale[:, None]
        return torch.eye(self.latent_dim).to(scaled) + scaled.T @ scaled

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """Return the exact p(z | x) of ``x``, ``[N, D]``: batch shape ``[N]``."""
        precision = self.precision()
        loc = torch.linalg.solve(precision, self.weight.T @ ((x - self.bias) / self.scale**2).T).T
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def optimal_mean_field(self, x: Tensor) -> dist.Independent:
        """Return the best factorised Gaussian guide of ``x``, with the posterior's mean and precision diagonal."""
        return dist.Normal(self.posterior(x).loc, self.precision().diagonal().rsqrt()).to_event(1)

    def elbo(self, x: Tensor, loc: Tensor, covariance: Tensor) -> Tensor:
        """Return the exact ELBO of a Gaussian guide, ``[N]``, in nats per observation.

        Args:
            x: data, ``[N, D]``.
            loc: means of q(z | x), ``[N, latent_dim]``.
            covariance: covariance of q(z | x), ``[N, latent_dim, latent_dim]`` or ``[latent_dim, latent_dim]``.
        """
        guide = dist.MultivariateNormal(loc, covariance)
        return self.log_evidence(x) - torch.distributions.kl_divergence(guide, self.posterior(x))
