"""Whether held-out data are within what each model makes."""

from collections.abc import Mapping, Sequence

import pandas as pd

from pyrovae.diagnostics.diagnostic import Diagnostic, Fitted, register
from pyrovae.diagnostics.predictive.misspecification import Misspecification, misspecification
from pyrovae.diagnostics.tables import summary_means, summary_table


@register
class MisspecificationOfModels(Diagnostic):
    """Whether held-out data are within what each model makes."""

    name, title, option, default, rank = "misspecification", "Misspecification", "misspecification_of", 0, 55
    help = "number of test data that are compared with what each model makes; 0: none."
    text = (
        "pvalue: the smallest adjusted p-value of four tests of the whole set (codes, data, marginals, evidence); "
        "observations, features: shares that are rejected at 5%, adjusted for their number."
    )

    def ask(self, fitted: Fitted) -> Misspecification:
        """Return the comparison for some data."""
        return misspecification(*fitted.pair, fitted.some, **fitted.options)

    def columns(self, answers: Sequence[Misspecification]) -> dict[str, float]:
        """Return the mean of the smallest p-values, and the share of odd observations."""
        return summary_means(answers, {"misspecification_pvalue": "pvalue", "odd_observations": "observations"})

    def table(self, answers: Mapping[str, Misspecification]) -> pd.DataFrame:
        """Tabulate p-values and shares."""
        return summary_table(answers)
