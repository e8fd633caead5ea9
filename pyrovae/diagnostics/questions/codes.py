"""The codes of held-out data, and what they tell about labels that no fit has seen."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from pyrovae import plots
from pyrovae.diagnostics.diagnostic import Diagnostic, Fitted, register
from pyrovae.diagnostics.latents.codes import codes
from pyrovae.diagnostics.latents.labels import label_scores
from pyrovae.diagnostics.tables import score_table
from pyrovae.plots.axes import Figure


@dataclass(frozen=True)
class Codes:
    """Codes of held-out data.

    Attributes:
        values: codes ``[N, D]``.
        classes: classes of the data; None where they have no labels.
        scores: scores of codes against labels; None where there are none, or too few.
    """

    values: Tensor
    classes: pd.Categorical | None
    scores: pd.DataFrame | None


@register
class CodesOfData(Diagnostic):
    """Codes, and their scores against labels."""

    name, title, option, default, rank = "codes", "Codes", "latents_of", 1000, 40
    text = (
        "Where the data have labels: scores of codes against labels that no fit has seen, by clusters of k-means, "
        "nearest neighbours and a linear probe; majority is the share of the commonest label."
    )
    captions = {  # noqa: RUF012
        "codes": "Codes of test data: the first two principal components of the posterior means, coloured by label "
        "where there are labels.",
        "labels": "Scores of codes against labels; bars are two standard errors.",
    }

    def ask(self, fitted: Fitted) -> Codes:
        """Return the codes of some data."""
        some = fitted.some
        values = codes(*fitted.pair, some, **fitted.options)
        scores = None
        if some.labels is not None:
            labels = some.labels.cpu()
            mask = labels >= 0
            scores = label_scores(values[mask], labels[mask], seed=fitted.seed)
        return Codes(values, some.classes, scores)

    def table(self, answers: Mapping[str, Codes]) -> pd.DataFrame | None:
        """Tabulate the scores."""
        scores = {name: one.scores for name, one in answers.items() if one.scores is not None}
        return score_table(scores) if scores else None

    def figures(self, answers: Mapping[str, Codes]) -> dict[str, Figure]:
        """Plot the codes, and their scores."""
        classes = next(iter(answers.values())).classes
        figures = {"codes": plots.codes({name: one.values for name, one in answers.items()}, classes)}
        scores = {name: one.scores for name, one in answers.items() if one.scores is not None}
        return {**figures, "labels": plots.scores(scores)} if scores else figures
