"""Gaps between the bound and the evidence: the limits of the guide's family, and those of its encoder."""

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
    help = "number of test data, taken at random, for which to also find the approximation and amortization gaps."
    text = (
        "log p(x) less the guide's ELBO, split at the ELBO of the family's best member for each observation: what the "
        "family cannot express (approximation), and what the encoder does not find (amortization). These are means "
        "over num_data test data, taken at random. log_evidence is by annealing from the prior, which does not trust "
        "the guide, and from the guide where that fails. unreliable: share of the data with an unreliable "
        "log_evidence, which is then too low, and the approximation gap too small; NO under reliable: more than one in "
        "ten. refuted: share whose log_evidence lies below a lower bound: that is a failure of the estimate, not a "
        "gap, and these data are left out of the means of log_evidence and approximation."
    )
    captions = {  # noqa: RUF012
        "gaps": "Mean gaps of each guide; whiskers are two standard errors of paired differences. Hollow: the evidence "
        "is unreliable, and the gap too small."
    }

    def ask(self, fitted: Fitted) -> Gaps:
        """Return the gaps of some of the data."""
        return gaps(*fitted.pair, fitted.some, **fitted.options)

    def columns(self, answers: Sequence[Gaps]) -> dict[str, float]:
        """Return columns in nats per observation: means over data and seeds, and their standard errors.

        The approximation gap is the mean over observations whose evidence no bound refutes; ``gaps_refuted`` is the
        share of the others. ``gaps_unreliable`` is the share of observations whose evidence is unreliable, and
        ``gaps_reliable`` says whether these are few enough (:func:`~pyrovae.importance.psis.trusted_on_average`).
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
        """Tabulate both gaps, with the standard errors of their paired differences, and the bounds they lie between.

        ``reliable``: whether the evidence of at least nine in ten observations is reliable.
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
        """Plot the mean gaps."""
        return {"gaps": plots.gaps(answers)}

    def notes(self, answers: Mapping[str, Gaps]) -> str:
        """Return a sentence on every guide for which some evidence lies below a bound."""
        return " ".join(f"{name}{one.failure}." for name, one in answers.items() if one.failure)
