"""Recovery of latents that the model simulates: estimates beside the truth, z-scores beside contraction."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd
import torch
from torch import Tensor

from pyrovae import plots
from pyrovae.common.checks import at_least
from pyrovae.diagnostics.calibration.drawn_pairs import drawn_flat, flat
from pyrovae.diagnostics.predictive.draws import coordinates
from pyrovae.diagnostics.predictive.simulate import simulate
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords, without
from pyrovae.programs.streams import stream_seed
from pyrovae.programs.types import Program

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Recovery:
    """True latents of S simulated observations, and the guide's means and standard deviations, ``[S, D]`` each.

    Attributes:
        truth: latents that the observations were simulated from.
        mean: means of q(z | x).
        sd: standard deviations of q(z | x).
        names: names of the D latents.
    """

    truth: Tensor
    mean: Tensor
    sd: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def zscore(self) -> Tensor:
        """Error of the mean in posterior standard deviations, (mean - truth) / sd, ``[S, D]``."""
        return (self.mean - self.truth) / self.sd

    @property
    def contraction(self) -> Tensor:
        """1 - sd^2 / variance under the prior, ``[S, D]``: 0 where an observation says nothing, 1 where all is known.

        The prior's variance is that of the simulated latents.
        """
        return 1 - self.sd.square() / self.truth.var(0)

    def table(self) -> pd.DataFrame:
        """Return one row per latent.

        ``correlation`` of means with truths; ``rmse``; ``zscore_mean`` and ``zscore_sd``, about 0 and 1 for the
        posterior, with a standard deviation above 1 where the guide is too sure of itself; ``contraction``, its mean.
        """
        rows = {}
        for d, name in enumerate(self.names):
            truth, mean, zscore = self.truth[:, d], self.mean[:, d], self.zscore[:, d]
            rows[name] = {
                "correlation": float(torch.corrcoef(torch.stack([truth, mean]))[0, 1]),
                "rmse": float((mean - truth).square().mean().sqrt()),
                "zscore_mean": float(zscore.mean()),
                "zscore_sd": float(zscore.std()),
                "contraction": float(self.contraction[:, d].mean()),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("latent")

    def plot(self) -> "Figure":
        """Plot means against truths, and z-scores against contraction, for every latent (the first six)."""
        return plots.recovery(self)

    def __str__(self) -> str:
        return f"{len(self)} simulations\n{self.table().round(3).to_string()}"


@shared_keywords(batch_size=BATCH_SIZE)
def recovery(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_simulations: int = 500,
    num_draws: int = 200,
    **options: Unpack[Options],
) -> Recovery:
    """Simulate latents and data from the model, and say how well the guide recovers the latents.

    High contraction with z-scores around 0 of unit size: the data tell the latents, and the guide reads them. Low
    contraction with small z-scores: the data say little. Large z-scores: the guide is wrong, or overconfident.

    Source: Schad, Betancourt and Vasishth, "Toward a principled Bayesian workflow in cognitive science", 2021.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set, as a template (:func:`pyrovae.simulate`).
        num_simulations: number of simulated observations S.
        num_draws: number of the guide's draws for every mean and standard deviation.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, a model without latents, or
            discrete latents.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> recovery(model, guides.Exact(model), torch.zeros(1, 5), num_simulations=50, progress=False).zscore.shape
        torch.Size([50, 2])
    """
    at_least("num_simulations", num_simulations, 2)
    at_least("num_draws", num_draws, 2)
    settings, own = without(options, "batch_size", "seed"), stream_seed("simulations of recovery", options["seed"])
    simulation = simulate(model, data, num_simulations=num_simulations, seed=own, **settings)
    if not simulation.latents:
        raise ValueError("the model has no latents that it draws, so there is nothing to recover")
    draws, _ = drawn_flat(model, guide, simulation.data, num_draws, "recovery", options, continuous=True)
    names = tuple(name for site, value in simulation.latents.items() for name in coordinates(site, value[0]))
    mean, sd = draws.mean(0), draws.std(0, ddof=1)
    return Recovery(torch.from_numpy(flat(simulation.latents)), torch.from_numpy(mean), torch.from_numpy(sd), names)
