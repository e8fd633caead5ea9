"""A guide without amortisation: every observation has parameters of its own."""

import copy
import functools
from numbers import Integral
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least, shown
from pyrovae.guides.guide import Guide, check_guide
from pyrovae.nn.network import check_columns


class Local(nn.Module):
    """q_i(z), a member of a family for every observation i, fitted to that observation alone.

    The parameters start where the family's own encoder puts the observation, and no encoder is used after that: the
    distance between the two is what amortisation loses. The parameters that all observations share (the networks of a
    flow's steps) are trained as well. An observation is recognised by its numbers, so that equal observations share
    their parameters. Data that were not given here are refused, and so are data that change from epoch to epoch
    (dynamic binarisation).

    Source: Hoffman, Blei, Wang and Paisley, "Stochastic variational inference", 2013; Cremer, Li and Duvenaud,
    "Inference suboptimality in variational autoencoders", 2018.

    Args:
        family: any guide of one latent with an encoder; it is copied, and stays as it is.
        data: all data, a tensor or a tuple of tensors. A number of observations instead makes room for a saved guide.

    Example:
        >>> from pyrovae import guides, nn
        >>> x = torch.rand(100, 8)
        >>> Local(guides.MeanField(nn.MLP(8, 16), 2), x).posterior(x[:5]).batch_shape
        torch.Size([5])
    """

    def __init__(self, family: Guide, data: Any) -> None:
        super().__init__()
        check_guide("family", family)
        tensors = _tensors(data)
        if tensors and all(t.dim() == 2 for t in tensors):
            columns = sum(t.shape[1] for t in tensors)
            check_columns("the encoder of family", family.encoder, columns, "the columns of data")
        self.latent = family.latent
        self.data = len(tensors[0]) if tensors else at_least("data", data, 1)
        self.keys: Tensor
        if not tensors:
            start, keys = torch.zeros(self.data, _width(family)), torch.zeros(self.data, dtype=torch.int64)
        else:
            with torch.no_grad():
                start = torch.cat([family.params(*part) for part in _parts(tensors)])
            keys = torch.cat([fingerprints(part) for part in _parts(tensors)])
            keys, order = keys.sort()
            start = start[order]
        self.family = copy.deepcopy(family)
        for name in ("encoder", "head"):
            _as_plain_attribute(self.family, name)
        self.free = nn.Parameter(start)
        self.register_buffer("keys", keys)

    def params(self, *batch: Tensor) -> Tensor:
        """Return the parameters of every observation of a batch, ``[N, P]``; NaN if it was not given to the guide."""
        keys = fingerprints(batch)
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        matches = self.keys[place] == keys
        if pyro.distributions.is_validation_enabled() and not bool(matches.all()):
            raise ValueError(
                f"{int((~matches).sum())} of {len(matches)} data are not among the {len(self.keys)} that this guide "
                "has parameters for: make it with the data that it is to be used on, as they are (not binarised anew)"
            )
        return torch.where(matches[:, None], self.free[place], torch.nan)

    def posterior(self, *batch: Tensor) -> dist.TorchDistribution:
        """Return q_i(z) of every observation of a batch: batch shape ``[N]``, event shape ``[latent_dim]``."""
        return self.family.member(self.params(*batch))

    def forward(self, *batch: Tensor) -> Tensor:
        """Sample the latent of every observation of the batch; return it, ``[N, latent_dim]``."""
        pyro.module("guide", self)
        with pyro.plate("data", batch[0].shape[0]):
            z: Tensor = pyro.sample(self.latent, self.posterior(*batch))
        return z


def _as_plain_attribute(owner: nn.Module, name: str) -> None:
    """Make a submodule a plain attribute: it stays in place, but its parameters no longer belong to the owner."""
    network = getattr(owner, name)
    if name in owner._modules:
        delattr(owner, name)
    owner.__dict__[name] = network


def fingerprints(batch: tuple[Tensor, ...]) -> Tensor:
    """Return a number for every observation, ``[N]``, that depends on all bits of its values and on nothing else.

    Two observations that differ have the same number with a probability of about 2^-64.
    """
    rows = [t.reshape(len(t), -1).to(torch.float64).view(torch.int64) for t in batch]
    bits = torch.cat(rows, dim=1)
    bits = bits ^ (bits >> 32) ^ (bits >> 52)  # round numbers differ in their highest bits only
    return (bits * _weights(bits.shape[1], str(bits.device))).sum(1)


@functools.cache
def _weights(size: int, device: str) -> Tensor:
    """Return odd numbers, the same at every call, ``[size]``."""
    generator = torch.Generator("cpu").manual_seed(0)
    integers = torch.randint(-(2**62), 2**62, (size,), generator=generator, device="cpu", dtype=torch.int64)
    return (2 * integers + 1).to(device)


def _tensors(data: Any) -> tuple[Tensor, ...]:
    """Return the tensors of the data; none if ``data`` is a number of observations.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(data, Integral) and not isinstance(data, bool):
        return ()
    tensors = tuple(data) if isinstance(data, tuple | list) else (data,)
    if not tensors or not all(isinstance(t, Tensor) and t.dim() > 0 and len(t) > 0 for t in tensors):
        raise ValueError(f"data must be a tensor or tensors, the same that are passed to fit, got {shown(data)}")
    if len({len(t) for t in tensors}) > 1:
        raise ValueError(f"data must be tensors of one length, got lengths {[len(t) for t in tensors]}")
    return tensors


def _parts(tensors: tuple[Tensor, ...]) -> Any:
    return zip(*(t.split(1024) for t in tensors), strict=True)


def _width(family: Guide) -> int:
    features = torch.zeros(1, family.num_features)
    with torch.no_grad():
        return int(family.head(features).shape[-1])
