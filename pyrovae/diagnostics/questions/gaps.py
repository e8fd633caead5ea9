"""Where the bound loses: what the guide's family cannot express, and what its encoder does not find."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from pyrovae import plots
from pyrovae.diagnostics.crossed import crossed_error
from pyrovae.diagnostics.diagnostic import Diagnostic, Fitted, register
from pyrovae.diagnostics.evidence.gaps import Gaps, gaps
from pyrovae.importance.psis import trusted_on_average
from pyrovae.plots.axes import Figure


@register
class GapsOfGuides(Diagnostic):
    """Approximation and amortization gap of every guide."""

    name, title, option, default, rank = "gaps", "Where the bound loses", "gaps_of", 0, 10
    help = "of this many test data, taken at random, also find the guide's approximation and amortization gaps."
    text = (
        "log p(x) less the guide's ELBO, split at the ELBO of the family's best member for each observation: what the "
        "family "
        "cannot express (approximation), and what the encoder does not find (amortization). Of the first num_data test "
        "data; log_evidence is by annealing from the prior, which does not trust the guide, and from the guide where "
        "that fails. unreliable: share of the data whose log_evidence is not to be trusted, which is too low then, and "
        "the approximation gap too small; NO under reliable: more than one in ten. refuted: share whose log_evidence "
        "lies below a lower bound, a failure of the estimate, and no gap: left out of the means of log_evidence and "
        "approximation."
    )
    captions = {  # noqa: RUF012
        "gaps": "Mean gaps of each guide; whiskers are two standard errors of paired differences. Hollow: the evidence "
        "is not to be trusted, and the gap too small."
    }

    def ask(self, fitted: Fitted) -> Gaps:
        """Return the gaps of some of the data."""
        return gaps(*fitted.pair, fitted.some, **fitted.options)

    def columns(self, answers: Sequence[Gaps]) -> dict[str, float]:
        """Return columns in nats per observation: means over data and seeds, and their standard errors.

        The approximation gap is of the data whose evidence no bound refutes, ``gaps_refuted`` the share of the others;
        ``gaps_unreliable`` the share of data whose evidence is not to be trusted, and ``gaps_reliable`` whether that is
        few enough (:func:`~pyrovae.importance.psis.trusted_on_average`).
        """
        columns: dict[str, Any] = {}
        refuted = torch.stack([one.refuted for one in answers])
        for kind in ("approximation", "amortization"):
            values = torch.stack([getattr(one, kind) for one in answers])
            values = values[:, ~refuted.any(0)] if kind == "approximation" else values
            columns[kind], columns[f"{kind}_se"] = float(values.mean()), crossed_error(values)
        reliable = torch.stack([one.reliable for one in answers])
        columns["gaps_reliable"] = trusted_on_average(reliable)
        columns["gaps_unreliable"] = float((~reliable).double().mean())
        columns["gaps_refuted"] = float(refuted.double().mean())
        return columns

    def table(self, answers: Mapping[str, Gaps]) -> pd.DataFrame:
        """Tabulate both gaps, with the standard errors of their paired differences, and what they lie between.

        ``reliable``: whether the evidence of nine data in ten, at least, is to be trusted.
        """
        names = ["num_data", "log_evidence", "optimal_elbo", "elbo"]
        names += [f"{kind}{end}" for kind in ("approximation", "amortization") for end in ("", "_se")]
        names += ["unreliable", "refuted"]
        rows = {}
        for name, one in answers.items():
            summary = one.summary()
            rows[name] = {
                **{key: summary[key] for key in names[:4]},
                "reliable": trusted_on_average(one.reliable),
                **{key: summary[key] for key in names[4:]},
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    def figures(self, answers: Mapping[str, Gaps]) -> dict[str, Figure]:
        """Draw the mean gaps."""
        return {"gaps": plots.gaps(answers)}

    def notes(self, answers: Mapping[str, Gaps]) -> str:
        """Say whose evidence lies below a bound of it."""
        return " ".join(f"{name}{one.failure}." for name, one in answers.items() if one.failure)
