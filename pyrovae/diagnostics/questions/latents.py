"""What the latents hold: which of them are used, and the parts of their rate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pyrovae import plots
from pyrovae.diagnostics.diagnostic import Diagnostic, Fitted, register
from pyrovae.diagnostics.latents.aggregate import Aggregate, aggregate
from pyrovae.diagnostics.latents.usage import Usage, usage
from pyrovae.plots.axes import Figure

AGGREGATE_OF = 1000  # observations at most, since the cost of the aggregate posterior grows with their square


@dataclass(frozen=True)
class Latents:
    """What a pair's latents hold."""

    usage: Usage
    aggregate: Aggregate


@register
class LatentsOfPairs(Diagnostic):
    """Usage of the latents, and the parts of the rate."""

    name, title, option, default, rank = "latents", "Latents", "latents_of", 1000, 20
    help = (
        "number of test data, taken at random, on which the latents and what the model draws are evaluated; 0 leaves "
        "that out."
    )
    text = (
        "The rate and its parts: mutual information of observation and code (at most the log of the number of data; "
        "with an upper bound for the population), total correlation of the latents, and the distance of each latent to "
        "the prior. used: latents whose rate is not close to 0."
    )
    captions = {  # noqa: RUF012
        "usage": "Information of each latent about the data. Left: rates; right: variance of a code over the data, as "
        "a share of the whole variance.",
        "aggregate": "Parts of the rates; whiskers are two standard errors.",
    }

    def ask(self, fitted: Fitted) -> Latents:
        """Return the usage on some data, and their aggregate posterior, on at most 1,000 observations."""
        some = fitted.some
        few = some.numbered(assumed=True).sampled(AGGREGATE_OF, fitted.seed)
        return Latents(usage(*fitted.pair, some, **fitted.options), aggregate(*fitted.pair, few, **fitted.options))

    def columns(self, answers: Sequence[Latents]) -> dict[str, float]:
        """Return means in nats per observation, and the mean number of latents in use."""
        names = ("rate", "mutual_information", "marginal_kl")
        summaries = [one.aggregate.summary() for one in answers]
        used = [float(one.usage.layers["used"].sum()) for one in answers]
        means = {name: float(np.mean([s[name] for s in summaries])) for name in names}
        return {**means, "latents_used": float(np.mean(used))}

    def table(self, answers: Mapping[str, Latents]) -> pd.DataFrame:
        """Tabulate the rate and its parts in nats per observation, with standard errors, and the latents in use."""
        names = ["distortion", "rate", "mutual_information", "mutual_information_upper", "marginal_kl"]
        names += ["total_correlation", "dimension_wise"]
        rows = {}
        for name, one in answers.items():
            summary = one.aggregate.summary()
            layers = {
                f"used, {layer}": f"{row['used']} of {row['latents']}" for layer, row in one.usage.layers.iterrows()
            }
            rows[name] = {**{key: f"{summary[key]:.2f} ({summary[f'{key}_se']:.2f})" for key in names}, **layers}
        return pd.DataFrame.from_dict(rows, orient="index")

    def figures(self, answers: Mapping[str, Latents]) -> dict[str, Figure]:
        """Plot usage and rates."""
        return {
            "usage": plots.usage({name: one.usage for name, one in answers.items()}),
            "aggregate": plots.aggregate({name: one.aggregate for name, one in answers.items()}),
        }
