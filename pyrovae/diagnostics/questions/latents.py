"""What the latents hold: which are used, and what their rate is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pyrovae import plots
from pyrovae.diagnostics.diagnostic import Diagnostic, Fitted, register
from pyrovae.diagnostics.latents.aggregate import Aggregate, aggregate
from pyrovae.diagnostics.latents.usage import Usage, usage
from pyrovae.plots.axes import Figure

AGGREGATE_OF = 1000  # data at most, since the aggregate posterior takes the square of their number


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
        "The rate, and what it is made of: mutual information of observation and code (with an upper bound for the "
        "population; the first is at most the log of the number of data), total correlation of the latents, and their "
        "distances to the prior one by one. used: latents whose rate is not next to 0."
    )
    captions = {  # noqa: RUF012
        "usage": "Latents by what they hold of the data. Left: rates; right: variance over the data of a code, as a "
        "share of the whole.",
        "aggregate": "What the rates are made of; whiskers are two standard errors.",
    }

    def ask(self, fitted: Fitted) -> Latents:
        """Return the usage of some data, and their aggregate posterior, of 1,000 at most."""
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
        """Tabulate what latents hold, in nats per observation, with standard errors, and how many are in use."""
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
        """Draw usage and rates."""
        return {
            "usage": plots.usage({name: one.usage for name, one in answers.items()}),
            "aggregate": plots.aggregate({name: one.aggregate for name, one in answers.items()}),
        }
