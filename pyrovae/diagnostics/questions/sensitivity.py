"""How much posteriors and conclusions owe to the prior."""

from collections.abc import Mapping, Sequence

import pandas as pd

from pyrovae.diagnostics.diagnostic import Diagnostic, Fitted, register
from pyrovae.diagnostics.posterior.sensitivity import Sensitivity, sensitivity
from pyrovae.diagnostics.tables import summary_means, summary_table


@register
class SensitivityToPriors(Diagnostic):
    """Sensitivity of posteriors to powers of the prior and of the likelihood."""

    name, title, option, default, rank = "sensitivity", "Sensitivity to the prior", "sensitivity_of", 0, 60
    help = "number of test data, taken at random, whose posteriors' sensitivity to the prior is asked for; 0: none."
    text = (
        "Shares of the data: with a prior-data conflict in some latent; with a strong prior or weak likelihood; with a "
        "conclusion (a latent is above 0, with probability 0.95) that turns when the prior or the likelihood is raised "
        "to a power of 0.8 or 1.25; with weights that are not reliable enough to say."
    )

    def ask(self, fitted: Fitted) -> Sensitivity:
        """Return the sensitivities of some data."""
        return sensitivity(*fitted.pair, fitted.some, **fitted.options)

    def columns(self, answers: Sequence[Sensitivity]) -> dict[str, float]:
        """Return the shares of conflicts and of conclusions that turn."""
        return summary_means(answers, {"prior_conflict": "conflict", "prior_turned": "turned"})

    def table(self, answers: Mapping[str, Sensitivity]) -> pd.DataFrame:
        """Tabulate all shares."""
        return summary_table(answers)
