"""Draws of the latents of data as the rows of a matrix, for methods that know nothing of posteriors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.arviz.labels import refuse_beyond
from pyrovae.common.checks import at_least
from pyrovae.data import as_data
from pyrovae.importance.options import Options
from pyrovae.importance.question import ask
from pyrovae.programs.sites import is_discrete
from pyrovae.programs.types import Program
from pyrovae.uses.posterior import Posterior

MAX_BYTES = 4 * 2**30


@dataclass(frozen=True)
class DrawnCodes:
    """Draws of the latents of N observations.

    Attributes:
        draws: draws ``[S, N, D]`` of the latents that hold something of the data.
        index: names of the observations, ``[N]``.
        latents: names of the D latents.
    """

    draws: np.ndarray
    index: np.ndarray
    latents: list[str]

    @property
    def means(self) -> np.ndarray:
        """Posterior means, ``[N, D]``."""
        result: np.ndarray = self.draws.mean(0)
        return result

    def kept(self, least_activity: float) -> list[int]:
        """Return the latents whose posterior means make up more than a share of their variance over the data.

        Raises:
            ValueError: if no latent does.
        """
        within = self.draws.var(0, ddof=1).mean(0)
        between = self.means.var(0) - within / len(self.draws)
        total = between + within
        share = np.divide(between.clip(0), total, out=np.zeros_like(total), where=total > 0)
        if len(self.index) == 1:
            return list(range(len(total)))
        kept = np.flatnonzero(share >= least_activity)
        if not len(kept):
            raise ValueError(
                f"no latent holds anything of the data: of none do the posterior means make up {least_activity:g} of "
                "its variance (pyrovae.usage says more)"
            )
        return [int(k) for k in kept]

    def of(self, kept: list[int]) -> "DrawnCodes":
        """Return the draws of some latents."""
        return DrawnCodes(self.draws[..., kept], self.index, [self.latents[k] for k in kept])


def drawn_codes(
    model: Program, guide: Program, data: Any, *, site: str | None, num_draws: int, posterior: Posterior | None,
    options: Options,
) -> DrawnCodes:  # fmt: skip
    """Draw the latents of data from the guide, or take draws of their posteriors.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, a table, or a data set.
        site: latent site; None: all of them, side by side.
        num_draws: number of draws per observation.
        posterior: draws of these data's posteriors; None draws from the guide.
        options: options of the question.

    Raises:
        ValueError: for a site that is not a latent, latents that are discrete, or a posterior of other data.
    """
    num_draws = at_least("num_draws", num_draws, 2)
    data = as_data(data, model, guide)
    with ask(model, guide, data, **options) as question:
        question.layout.require_latents()
        names = question.layout.latents if site is None else (site,)
        if unknown := [name for name in names if name not in question.layout.latents]:
            raise ValueError(f"site {unknown[0]!r} is not a latent: the model has {list(question.layout.latents)}")
        priors = question.pair.traces(question.data.batch(slice(0, 1)))[0]
        for name in names:
            if is_discrete(priors.nodes[name]["fn"]):
                raise ValueError(
                    f"latent site {name!r} is discrete, so that its values have no distances: name another, site="
                )
        if posterior is not None:
            by_site = _thinned(posterior, names, num_draws, data.index)
        else:
            by_site = {name: [] for name in names}
            sizes = sum(priors.nodes[name]["value"].numel() for name in names)
            refuse_beyond(MAX_BYTES, 8 * num_draws * len(data) * sizes)
            rows: dict[int, list[dict[str, Tensor]]] = {}
            for part in question.particles(num_draws, "codes"):
                values = {name: part.values(part.guide_trace.nodes[name]).double().cpu() for name in names}
                rows.setdefault(part.indices.start, []).append(values)
            for batch in rows.values():
                for name in names:
                    by_site[name].append(torch.cat([values[name] for values in batch]))
    whole = {name: torch.cat(parts, 1) for name, parts in by_site.items()}
    labels = [f"{name}[{k}]" for name, value in whole.items() for k in range(value[0, 0].numel())]
    return DrawnCodes(torch.cat([v.flatten(2) if v.dim() > 2 else v[..., None] for v in whole.values()], 2).numpy(),
                      data.index, labels)  # fmt: skip


def _thinned(
    posterior: Posterior, names: tuple[str, ...], num_draws: int, index: np.ndarray
) -> dict[str, list[Tensor]]:
    """Return some of a posterior's draws, evenly spaced, by site."""
    if len(posterior) != len(index):
        raise ValueError(
            f"posterior is of {len(posterior)} observations, but the data hold {len(index)}: ask about the same"
        )
    if not np.array_equal(posterior.index, index):
        raise ValueError("posterior is of other observations than the data, by their names: ask about the same")
    available = len(next(iter(posterior.draws.values())))
    if available < num_draws:
        raise ValueError(f"posterior has {available} draws, and {num_draws} are wanted: lower num_draws")
    chosen = torch.from_numpy(np.linspace(0, available - 1, num_draws).round().astype(int))
    return {name: [posterior.draws[name][chosen].double()] for name in names}
