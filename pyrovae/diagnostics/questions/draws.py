"""Draws of each model compared with held-out data."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from pyrovae import plots
from pyrovae.diagnostics.calibration.ranks import Ranks
from pyrovae.diagnostics.diagnostic import Diagnostic, Fitted, register
from pyrovae.diagnostics.predictive.pit import pit
from pyrovae.diagnostics.predictive.sample_quality import sample_quality
from pyrovae.diagnostics.tables import score_table
from pyrovae.importance.options import without
from pyrovae.plots.axes import Figure


@dataclass(frozen=True)
class Draws:
    """A model's draws compared with held-out data: scores of the draws, and ranks of the data in its marginals."""

    quality: pd.DataFrame
    marginals: Ranks


@register
class DrawsOfModels(Diagnostic):
    """Quality of draws, and marginals of held-out data."""

    name, title, option, default, rank = "draws", "Draws", "latents_of", 1000, 50
    text = (
        "Draws of each model compared with held-out data, by nearest neighbours. The row data compares one half of the "
        "held-out data with the other: these are the scores of a perfect model. marginal_pvalue: the smallest p-value "
        "over all features of a test that held-out data have the model's marginals, corrected for their number."
    )
    captions = {  # noqa: RUF012
        "quality": "Scores of each model's draws, and (grey) of held-out data against other held-out data; bars are "
        "two standard errors.",
        "marginals": "Distribution of the ranks of every feature of the test data in the best model's marginals, less "
        "the uniform one; features that leave their own 95% band are named (the table's p-value is corrected for their "
        "number).",
    }

    def ask(self, fitted: Fitted) -> Draws:
        """Return scores of draws, and ranks of the data."""
        some, options = fitted.some, without(fitted.options, "batch_size")
        return Draws(sample_quality(fitted.model, some, **options), pit(fitted.model, some, **options))

    def table(self, answers: Mapping[str, Draws]) -> pd.DataFrame:
        """Tabulate the quality of draws, and that of held-out data compared with other held-out data."""
        table = score_table({name: one.quality for name, one in answers.items()}, "model", "model_se")
        smallest = {name: float(one.marginals.table()["adjusted"].min()) for name, one in answers.items()}
        table["marginal_pvalue"] = pd.Series({name: f"{value:.3g}" for name, value in smallest.items()})
        data = score_table({"data": next(iter(answers.values())).quality}, "data", "data_se")
        return pd.concat([table, data]).fillna("")

    def figures(self, answers: Mapping[str, Draws]) -> dict[str, Figure]:
        """Plot the scores, and the ranks of the first strategy, which is the best."""
        best = next(iter(answers.values()))
        scores = {name: one.quality.drop(index="frechet") for name, one in answers.items()}
        return {"quality": plots.scores(scores), "marginals": plots.ranks(best.marginals)}
