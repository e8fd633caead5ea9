"""Which latents a pair uses: rates and activity by coordinate, and what has collapsed onto the prior."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.checks import at_least, positive
from pyrovae.evaluation.draws import coordinates
from pyrovae.evaluation.evaluate import standard_error
from pyrovae.latents.marginals import marginals
from pyrovae.noise import DatumNoise
from pyrovae.pair import Program, Repeated, per_datum
from pyrovae.particles import BATCH_SIZE, Particles, Question, question

INFORMATION_OF = 500
NUMBERS = 2**25  # log densities held at once


@dataclass(frozen=True)
class Usage:
    """What each latent holds of the data.

    Attributes:
        latents: a row a coordinate (``z[0]``, ...), columns ``layer`` (its site), ``rate``, ``rate_se``,
            ``information``, ``activity``, ``collapsed``; see :func:`usage`.
        layers: a row a site: ``rate``, ``rate_se`` and ``information`` of all its coordinates together, in nats per
            datum; how many they are (``latents``) and are in use (``used``); ``collapsed``.
    """

    latents: pd.DataFrame
    layers: pd.DataFrame

    @property
    def collapsed(self) -> list[str]:
        """Names of the collapsed coordinates."""
        return list(self.latents.index[self.latents["collapsed"]])

    def __str__(self) -> str:
        lines = []
        for name, layer in self.layers.iterrows():
            unused = self.latents.index[(self.latents["layer"] == name) & self.latents["collapsed"]]
            state = "collapsed: no latent holds anything of the data" if layer["collapsed"] else (
                f"{layer['used']} of {layer['latents']} latents in use"
                + (f", collapsed: {', '.join(unused)}" if len(unused) else "")
            )  # fmt: skip
            lines.append(f"{name}: {layer['rate']:.3g} nats per datum (se {layer['rate_se']:.2g}), {state}")
        return "\n".join(lines)


def usage(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_draws: int = 32,
    threshold: float = 0.01,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Usage:
    """Report which latents, and which layers of them, have collapsed onto the prior.

    Of every coordinate, given the layers that the programs draw before it:

    - ``rate``: E[log q(z_d | ...) - log p(z_d | ...)] in nats per datum, of q's marginal; next to 0 where q has
      collapsed onto the prior. Rates of coordinates add up to the layer's for a factorised q; of a correlated one the
      layer's holds the correlation too. NaN where the family has no marginals in closed form (flows);
    - ``activity``: variance over the data of the mean of q, as a share of the whole variance of z_d, free of the bias
      of few draws; NaN for discrete latents;
    - ``information``: mutual information of z_d with what q is given, of the first 500 data (at most the log of their
      number), from q's marginals; NaN likewise;
    - ``collapsed``: whether the rate is below ``threshold``, or the information (the activity, where that is not
      known): a latent that does not move with the datum holds nothing, though its rate be above 0 because the guide's
      family does not contain the prior (a Gaussian q of a Laplace prior).

    A layer has collapsed where all of its latents have, and its own rate or information, which sees what single
    latents do not, is below ``threshold`` times their number.

    With a guide that samples the layers in another order than the model (``guides.Hierarchical``), only a layer's rate
    and that of the topmost layer's coordinates are to be read as divergences: see :func:`pyrovae.rates`.

    Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016, for active units; Lucas, Tucker,
    Grosse and Norouzi, "Understanding posterior collapse in generative latent variable models", 2019.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set; at least 2 data.
        num_draws: of every datum's posterior; at least 2.
        threshold: in nats per datum for rates, a share of the variance for activity.
        batch_size: data held by a call of the programs.
        seed: of the draws.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, or a guide with auxiliary sites.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> print(usage(model, guides.Exact(model), torch.randn(50, 5), progress=False).layers["used"].to_dict())
        {'z': 2}
    """
    at_least("num_draws", num_draws, 2)
    at_least("batch_size", batch_size, 1)
    positive("threshold", threshold)
    parts: dict[int, dict[str, _Sums]] = {}
    with question(model, guide, data, seed=seed, device=device) as asked:
        if asked.layout.auxiliary:
            raise ValueError(f"site {asked.layout.auxiliary[0]!r} of the guide is not in the model, so it has no rate")
        if len(asked.data) < 2:
            raise ValueError("which latents are used cannot be told from one datum: give at least 2")
        for part in asked.particles(num_draws, batch_size, "usage" if progress else None):
            found = {name: _Sums.of(part, name) for name in asked.layout.latents}
            kept = parts.get(part.indices.start)
            parts[part.indices.start] = found if kept is None else {n: kept[n] + f for n, f in found.items()}
        width = max(sums.single.shape[1] for sums in next(iter(parts.values())).values())
        held = _information(asked, width)
    rows: dict[str, dict[str, Any]] = {}
    layers: dict[str, dict[str, Any]] = {}
    for site in next(iter(parts.values())):
        sums = _Sums.joined([part[site] for part in parts.values()])
        table = sums.table(site, num_draws, threshold, held[site].single)
        rows.update(table)
        used = sum(not row["collapsed"] for row in table.values())
        rate, most = sums.rate / num_draws, threshold * len(table)
        silent = abs(float(rate.mean())) < most or held[site].together < most
        layers[site] = {
            "rate": float(rate.mean()),
            "rate_se": standard_error(rate),
            "information": held[site].together,
            "latents": len(table),
            "used": used,
            "collapsed": used == 0 and silent,
        }
    return Usage(
        pd.DataFrame.from_dict(rows, orient="index").rename_axis("latent"),
        pd.DataFrame.from_dict(layers, orient="index").rename_axis("layer"),
    )


@dataclass(frozen=True)
class _Sums:
    """Sums over the draws of each of N data, of one site.

    Attributes:
        names: of the coordinates.
        rate: of the whole site's log ratio, ``[N]``.
        single: of every coordinate's, ``[N, D]``; NaN where it is not known.
        first: of values, ``[N, D]``; NaN for discrete ones.
        second: of squared values, ``[N, D]``.
    """

    names: list[str]
    rate: Tensor
    single: Tensor
    first: Tensor
    second: Tensor

    @staticmethod
    def of(part: Particles, name: str) -> "_Sums":
        size = len(part.rows[0])
        q, p = part.guide_trace.nodes[name], part.model_trace.nodes[name]
        values = part.values(q)  # [K, data, ...]
        flat = values.reshape(*values.shape[:2], -1).double()
        if q["fn"].support.is_discrete:
            flat = torch.full_like(flat[..., :1] if q["fn"].event_shape else flat, torch.nan)
        known = [marginals(site["fn"]) if len(site["fn"].batch_shape) == 1 else None for site in (q, p)]
        single = torch.full_like(flat, torch.nan)
        if known[0] is not None and known[1] is not None and q["mask"] is None:
            rows = q["value"].reshape(size, -1)
            ratio = (known[0](rows) - known[1](rows)).double()
            single = ratio.unflatten(0, (len(part.indices), -1)).transpose(0, 1)
        rate = (per_datum(q, size) - per_datum(p, size)).double().unflatten(0, (len(part.indices), -1))
        names = coordinates(name, values[0, 0]) if flat.shape[-1] > 1 or values[0, 0].numel() == 1 else [name]
        sums = (t.cpu() for t in (rate.sum(1), single.sum(0), flat.sum(0), flat.square().sum(0)))
        return _Sums(names, *sums)

    def __add__(self, other: "_Sums") -> "_Sums":
        pairs = ((getattr(self, n), getattr(other, n)) for n in ("rate", "single", "first", "second"))
        return _Sums(self.names, *(one + another for one, another in pairs))

    @staticmethod
    def joined(parts: "list[_Sums]") -> "_Sums":
        fields = (torch.cat([getattr(part, n) for part in parts]) for n in ("rate", "single", "first", "second"))
        return _Sums(parts[0].names, *fields)

    def table(self, site: str, num_draws: int, threshold: float, information: Any) -> dict[str, dict[str, Any]]:
        """Return a row a coordinate; a discrete vector, whose coordinates are not apart, is one."""
        means = self.first / num_draws
        within = (self.second / num_draws - means.square()).clamp(min=0) * num_draws / (num_draws - 1)
        between = (means.var(0) - within.mean(0) / num_draws).clamp(min=0)  # draws spread the means
        activity = (between / (between + within.mean(0)).clamp(min=1e-30)).numpy()
        one = self.single.shape[1] == 1
        single = self.rate[:, None] if one else self.single
        rates = (single.mean(0) / num_draws).numpy()
        errors = [standard_error(column / num_draws) for column in single.T]
        rows = {}
        for name, rate, error, share, held in zip(self.names, rates, errors, activity, information, strict=True):
            tells = share if np.isnan(held) else held
            rows[name] = {
                "layer": site,
                "rate": float(rate),
                "rate_se": error,
                "information": float(held),
                "activity": float(share),
                "collapsed": any(abs(value) < threshold for value in (rate, tells)),  # NaN is not below
            }
        return rows


@dataclass(frozen=True)
class _Held:
    """Mutual information, in nats, of what q is given with a site's draw, and with each of its D coordinates."""

    together: float
    single: np.ndarray


def _information(asked: Question, num_latents: int) -> dict[str, _Held]:
    """Estimate what every site holds, from a draw of each of the first 500 data (fewer, if that many do not fit).

    Scored under all of them: E[log q(z | own) - log mean_j q(z | j)], at most the log of their number; NaN where the
    family has no marginals.
    """
    size = min(len(asked.data), INFORMATION_OF, max(int(math.sqrt(NUMBERS / num_latents)), 2))
    noise = DatumNoise("information", asked.seed, range(size), asked.data.device)
    with noise, Repeated():
        trace = poutine.trace(asked.pair.guide).get_trace(*asked.data.batch(slice(0, size)))
    found = {}
    for name in asked.layout.latents:
        site = trace.nodes[name]
        fn, value = site["fn"], site["value"]
        count = value[..., :1].numel() if fn.support.is_discrete and fn.event_shape else value.numel()
        held = _Held(math.nan, np.full(count // size, np.nan))
        known = marginals(fn) if len(fn.batch_shape) == 1 and site["mask"] is None else None
        if known is not None:
            flat = value.reshape(size, -1)
            single = known(flat[:, None]).double()  # [draws, data, D]
            together = fn.log_prob(value[:, None]).double()
            held = _Held(float(_gain(together[..., None])[0]), _gain(single).cpu().numpy())
        found[name] = held
    return found


def _gain(logs: Tensor) -> Tensor:
    """Return E[log q(z | own) - log mean_j q(z | j)] from log densities ``[n, n, D]``, draws by data: ``[D]``."""
    own = logs.diagonal(dim1=0, dim2=1)  # [D, n]
    return (own.T - logs.logsumexp(1) + math.log(logs.shape[1])).mean(0)
