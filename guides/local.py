"""A guide without amortisation: parameters of its own for every observation."""

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

    The parameters start where the family's own encoder puts the observation, and no encoder is used after that: what is
    lost by amortisation is the distance between the two. What a family shares besides (the networks of a flow's steps)
    is trained as well. An observation is known by its numbers, so that equal data share their parameters; data that
    were not given here are refused, as are data that change from epoch to epoch (dynamic binarisation).

    Source: Hoffman, Blei, Wang and Paisley, "Stochastic variational inference", 2013; Cremer, Li and Duvenaud,
    "Inference suboptimality in variational autoencoders", 2018.

    Args:
        family: any guide of one latent with an encoder; it is copied, and stays as it is.
        data: all data, a tensor or a tuple of tensors. A number of data, instead, makes room for a saved guide.

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
        """Return the parameters of every observation of a batch, ``[N, P]``; NaN for one that was not given."""
        keys = fingerprints(batch)
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        known = self.keys[place] == keys
        if pyro.distributions.is_validation_enabled() and not bool(known.all()):
            raise ValueError(
                f"{int((~known).sum())} of {len(known)} data are not among the {len(self.keys)} that this guide has "
                "parameters for: make it with the data that it is to be used on, as they are (not binarised anew)"
            )
        return torch.where(known[:, None], self.free[place], torch.nan)

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
    """Make a submodule a plain attribute: it stays known, and its parameters are no longer its owner's."""
    network = getattr(owner, name)
    if name in owner._modules:
        delattr(owner, name)
    owner.__dict__[name] = network


def fingerprints(batch: tuple[Tensor, ...]) -> Tensor:
    """Return a number for every observation, ``[N]``, that depends on all bits of its values and on nothing else.

    Data that differ have the same one with a probability of about 2^-64 a pair.
    """
    rows = [t.reshape(len(t), -1).to(torch.float64).view(torch.int64) for t in batch]
    bits = torch.cat(rows, dim=1)
    bits = bits ^ (bits >> 32) ^ (bits >> 52)  # round numbers differ in their highest bits alone
    return (bits * _weights(bits.shape[1], str(bits.device))).sum(1)


@functools.cache
def _weights(size: int, device: str) -> Tensor:
    """Return odd numbers, the same at every call, ``[size]``."""
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randint(-(2**62), 2**62, (size,), generator=generator, device="cpu", dtype=torch.int64)
    return (2 * drawn + 1).to(device)


def _tensors(data: Any) -> tuple[Tensor, ...]:
    """Return the tensors that data are; none where they are a number of data.

    Raises:
        ValueError: when they are neither.
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
