"""How much evidence a better prior would gain."""

from collections.abc import Mapping, Sequence

import pandas as pd

from pyrovae.diagnostics.diagnostic import Diagnostic, Fitted, register
from pyrovae.diagnostics.latents.prior_gain import PriorGain, prior_gain
from pyrovae.diagnostics.tables import summary_means, summary_table


@register
class GainOfPriors(Diagnostic):
    """The evidence that a better prior would gain."""

    name, title, option, default, rank = "prior_gain", "A better prior", "prior_gain_of", 0, 61
    help = "number of test data on which the gain of a better prior is estimated; 0: none."
    text = (
        "gain: log evidence, in nats per observation, that a flow gains over the prior on data that it was not fitted "
        "to; at_most: what the best prior of all gains on these very data, with hindsight."
    )

    def ask(self, fitted: Fitted) -> PriorGain:
        """Return the gain on some data."""
        return prior_gain(*fitted.pair, fitted.some, **fitted.options)

    def columns(self, answers: Sequence[PriorGain]) -> dict[str, float]:
        """Return the mean gain."""
        return summary_means(answers, {"prior_gain": "gain"})

    def table(self, answers: Mapping[str, PriorGain]) -> pd.DataFrame:
        """Tabulate gains, errors and bounds."""
        return summary_table(answers)
