"""Discrete latents of the model that the guide leaves out, summed out exactly for every observation."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution, TorchDistribution
from pyro.infer import infer_discrete
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.internals.pyro import handlers_around

SUMMED = "_summed"  # marks sites whose density is counted at another site, with discrete latents summed out


class Density(TorchDistribution):
    """A distribution whose log density per observation is already computed.

    Args:
        log_density: log density per observation, ``[N]``, in nats.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    support = constraints.real

    def __init__(self, log_density: Tensor) -> None:
        self.log_density = log_density
        super().__init__(log_density.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density."""
        return self.log_density


class _Only(Messenger):
    """Lets only the named sites be enumerated, and removes their masks.

    A mask hides the observations that depend on a latent. The latent's own probabilities stay: they sum to 1, and they
    link the sites that depend on it.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["mask"] = None
            while isinstance(msg["fn"], MaskedDistribution):
                msg["fn"] = msg["fn"].base_dist
        elif "enumerate" in msg["infer"]:
            msg["infer"] = {key: value for key, value in msg["infer"].items() if key != "enumerate"}


class _Summing(Messenger):
    """Marks runs of the model in which sites are to be enumerated."""


@contextmanager
def enumerated(names: Collection[str], nesting: int) -> Iterator[None]:
    """Enumerate latents of a model that is run inside the block, if :func:`summed_out` runs it.

    Enter this block inside of all handlers that give other latents their values, so that these latents know which
    enumerated latents they depend on.
    """
    if not handlers_around(_Summing):
        yield
        return
    with EnumMessenger(first_available_dim=-1 - nesting), _Only(names):
        yield


def summed_out(program: Callable[..., Any], batch: tuple[Tensor, ...], names: Collection[str], plate: str) -> Any:
    """Return a trace of a model in which two sites hold its densities per observation, discrete latents summed out.

    ``"prior"`` is the density of the other latents, and ``"likelihood"`` is what the observed sites add to it. The
    model's own sites are marked as counted. Dependence through ``pyro.markov`` is summed by message passing, as in
    ``TraceEnum_ELBO``.

    Args:
        program: the model, with its other latents given.
        batch: batch that the model is run on.
        names: names of the latents to sum out.
        plate: name of the data plate.
    """
    with _Summing():
        trace = poutine.trace(program).get_trace(*batch)
    whole = prune_subsample_sites(trace)
    sites = [site for site in whole.nodes.values() if site["type"] == "sample"]
    for site in sites:
        site["scale"] = 1.0
    whole.compute_log_prob()
    whole.pack_tensors()
    rows = len(batch[0])
    joint = _contracted(whole, sites, plate, rows)
    prior = _contracted(whole, [site for site in sites if not site["is_observed"]], plate, rows)
    sums = poutine.Trace()
    for site in sites:
        sums.add_node(site["name"], **{**site, "infer": {**site["infer"], SUMMED: True}})
    for name, density, observed in (("prior", prior, False), ("likelihood", joint - prior, True)):
        sums.add_node(
            f"{name}, {', '.join(names)} summed out", type="sample", name=name, fn=Density(density), value=density,
            is_observed=observed, infer={}, mask=None, scale=1.0, cond_indep_stack=(), args=(), kwargs={},
        )  # fmt: skip
    return sums


def _contracted(trace: Any, sites: Iterable[Any], plate: str, rows: int) -> Tensor:
    """Return the sites' joint log density per observation, ``[rows]``, enumerated dimensions summed out."""
    terms: OrderedDict[frozenset[str], list[Any]] = OrderedDict()
    dims: set[str] = set()
    sizes: dict[str, int] = {}  # of plates; a tensor may have no dimension for a plate of size 1
    for site in sites:
        plates = {trace.plate_to_symbol[f.name]: f.size for f in site["cond_indep_stack"] if f.vectorized}
        frames = frozenset(plates)
        sizes.update(plates)
        term = site["packed"]["log_prob"]
        terms.setdefault(frames, []).append(term)
        dims |= set(term._pyro_dims)
    if not terms:
        return torch.zeros(rows)
    data = trace.plate_to_symbol[plate]
    enumerated_dims = dims - set(trace.plate_to_symbol.values())
    total: Tensor = contract_to_tensor(terms, enumerated_dims, frozenset({data}), ring=LogRing(dim_to_size=sizes))
    return total.expand(rows)


def drawn_back(program: Callable[..., Any], batch: tuple[Tensor, ...], names: Collection[str], nesting: int) -> Any:
    """Return a trace of a model in which the latents to be summed out are drawn from their posterior given the rest."""
    only = _Only(names)(program)
    sampler = infer_discrete(only, first_available_dim=-1 - nesting, temperature=1, strict_enumeration_warning=False)
    return poutine.trace(sampler).get_trace(*batch)
