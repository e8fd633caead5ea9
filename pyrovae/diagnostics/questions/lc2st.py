"""At which observations the guide is wrong."""

from collections.abc import Mapping, Sequence

import pandas as pd

from pyrovae.diagnostics.calibration.lc2st import LC2ST, lc2st
from pyrovae.diagnostics.diagnostic import Diagnostic, Fitted, register
from pyrovae.diagnostics.tables import summary_means, summary_table


@register
class LocalTests(Diagnostic):
    """Local tests of the guide."""

    name, title, option, default, rank = "lc2st", "Local calibration", "lc2st_of", 0, 31
    help = "number of test data at which the guide is tested by a local classifier test; 0: none."
    text = (
        "overall: p-value of the guide being right on average over simulated data; rejected: share of the data at "
        "which it is rejected at 5%, and at a false discovery rate of 5%."
    )

    def ask(self, fitted: Fitted) -> LC2ST:
        """Return the tests at some data."""
        return lc2st(*fitted.pair, fitted.some, num_null=0, **fitted.options)

    def columns(self, answers: Sequence[LC2ST]) -> dict[str, float]:
        """Return the share of data at which the guide is rejected."""
        return summary_means(answers, {"lc2st_rejected": "rejected_adjusted"})

    def table(self, answers: Mapping[str, LC2ST]) -> pd.DataFrame:
        """Tabulate p-values and shares."""
        return summary_table(answers)
