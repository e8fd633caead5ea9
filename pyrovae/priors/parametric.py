"""Any family of distributions of one number as a prior, with free hyperparameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from pyrovae.common.checks import at_least, shown
from pyrovae.priors.prior import Prior


class Parametric(Prior):
    """z_d ~ family(hyperparameters), independently; the hyperparameters are fitted.

    They are fitted with the model (empirical Bayes), or by :func:`pyrovae.elicit`; ``requires_grad_(False)`` keeps them
    as they are from then on.

    Args:
        latent_dim: number of latents.
        family: name of a distribution of Pyro over one number, with a fixed support, such as "Laplace", "StudentT" or
            "Gamma", or its class.
        hyperparameters: initial values by name, each one number for all latents or a sequence of one per latent.
        fixed: names of hyperparameters that keep their values.

    Raises:
        ValueError: for an unknown family, hyperparameters that it does not have, or values outside their range.

    Example:
        >>> prior = Parametric(3, "StudentT", {"df": 4.0, "loc": 0.0, "scale": [1.0, 2.0, 3.0]}, fixed=["df"])
        >>> prior().event_shape, sorted(prior.values())
        (torch.Size([3]), ['df', 'loc', 'scale'])
    """

    def __init__(
        self, latent_dim: int, family: Any, hyperparameters: Mapping[str, Any], *, fixed: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.family = family if isinstance(family, str) else getattr(family, "__name__", shown(family))
        self.latent_dim = latent_dim = at_least("latent_dim", latent_dim, 1)
        self._ranges = _ranges(self.family, hyperparameters)
        if isinstance(fixed, str) or not isinstance(fixed, Sequence):
            raise ValueError(f"fixed must be a list of names of hyperparameters, got {fixed!r}")
        unknown = [name for name in fixed if name not in hyperparameters]
        if unknown:
            raise ValueError(f"fixed names {unknown[0]!r}, which is none of {', '.join(hyperparameters)}")
        self.fixed = tuple(fixed)
        self.hyperparameters = {n: v.tolist() if isinstance(v, Tensor) else v for n, v in hyperparameters.items()}
        self.raw = nn.ParameterDict()
        for name, value in hyperparameters.items():
            tensor = self._checked(name, value)
            if name in self.fixed:
                self.register_buffer(f"fixed_{name}", tensor)
            else:
                self.raw[name] = nn.Parameter(biject_to(self._ranges[name]).inv(tensor))
        self()

    def _checked(self, name: str, value: Any) -> Tensor:
        try:
            tensor = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"hyperparameter {name!r} must be a number or one per latent, got {value!r}") from None
        if tensor.shape not in ((), (self.latent_dim,)):
            raise ValueError(
                f"hyperparameter {name!r} must be one number or {self.latent_dim}, got {list(tensor.shape)}"
            )
        if not bool(self._ranges[name].check(tensor).all()):
            raise ValueError(
                f"hyperparameter {name!r} of {self.family} must lie in {self._ranges[name]}, got {value!r}"
            )
        return tensor

    def values(self) -> dict[str, Tensor]:
        """Return the hyperparameters by name, ``()`` or ``[latent_dim]`` each."""
        return {
            name: getattr(self, f"fixed_{name}")
            if name in self.fixed
            else biject_to(self._ranges[name])(self.raw[name])
            for name in self.hyperparameters
        }

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        values = {name: value.expand(self.latent_dim) for name, value in self.values().items()}
        return getattr(dist, self.family)(**values, validate_args=False).to_event(1)


def _ranges(family: str, hyperparameters: Any) -> dict[str, Any]:
    """Return the ranges of a family's hyperparameters.

    Raises:
        ValueError: for a family that Pyro does not have, or other hyperparameters.
    """
    if not isinstance(hyperparameters, Mapping) or not hyperparameters:
        raise ValueError(f'hyperparameters must be values by name, {{"scale": 1.0}}, got {hyperparameters!r}')
    cls = getattr(dist, family, None)
    if isinstance(getattr(cls, "support", None), property):
        raise ValueError(
            f"the support of {family} depends on its hyperparameters, so that the derivatives of its density do not "
            "tell how its draws change: take a family with a fixed support"
        )
    known = getattr(cls, "arg_constraints", None)
    if cls is None or not isinstance(known, Mapping) or not issubclass(cls, torch.distributions.Distribution):
        raise ValueError(f"family must be a distribution of Pyro over one number, such as 'Laplace', got {family!r}")
    ranges = {name: known.get(name) for name in hyperparameters}
    bad = [name for name, one in ranges.items() if one is None or one.event_dim or one is constraints.dependent]
    if bad:
        raise ValueError(f"{family} has no hyperparameter {bad[0]!r} to fit: it has {', '.join(known)}")
    try:
        one = cls(**{name: torch.as_tensor(value, dtype=torch.float32) for name, value in hyperparameters.items()})
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{family} does not take {dict(hyperparameters)}: {' '.join(str(error).split())}") from None
    if one.event_shape:
        raise ValueError(f"{family} is not a distribution of one number: its event shape is {tuple(one.event_shape)}")
    return ranges
