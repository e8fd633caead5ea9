"""Whether each guide is calibrated on data that its model simulates."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pyrovae.diagnostics.calibration.sbc import Calibration, sbc
from pyrovae.diagnostics.diagnostic import Diagnostic, Fitted, register
from pyrovae.plots.axes import Figure


@register
class CalibrationOfGuides(Diagnostic):
    """Simulation-based calibration of every guide."""

    name, title, option, default, rank = "calibration", "Calibration", "simulations", 500, 30
    help = "observations that each fitted model simulates to check its guide's calibration; 0 leaves that out."
    text = (
        "Latents and data are simulated from each fitted model, and the latents are ranked among the guide's draws "
        "given the data. sbc_pvalue: the smallest p-value of all quantities, corrected for their number; small where "
        "the guide is not the posterior on average. symmetry: the same for ranks that lean to one side. coverage: "
        "share of simulations inside the guide's 50% and 90% regions of highest density (central intervals where the "
        "guide has no density), and inside balls of the same probability around a reference point (TARP)."
    )

    def check(self, size: int) -> int:
        """Return the number of simulations: 0, or at least 2."""
        size = super().check(size)
        if size == 1:
            raise ValueError("simulations must be 0 or at least 2, got 1")
        return size

    def ask(self, fitted: Fitted) -> Calibration:
        """Return the ranks of ``fitted.size`` simulations."""
        return sbc(*fitted.pair, fitted.data.unweighted(), num_simulations=fitted.size, **fitted.options)

    def columns(self, answers: Sequence[Calibration]) -> dict[str, float]:
        """Return ``sbc_pvalue``, the smallest over all quantities and seeds, corrected for their number, and
        ``coverage_90``, the share of simulations inside a credible region of 90%.
        """  # noqa: D205
        summaries = [one.summary() for one in answers]
        smallest = min(summary["pvalue"] for summary in summaries)
        return {
            "sbc_pvalue": min(1.0, len(answers) * smallest),
            "coverage_90": float(np.mean([summary["coverage_90"] for summary in summaries])),
        }

    def table(self, answers: Mapping[str, Calibration]) -> pd.DataFrame:
        """Tabulate corrected p-values, and coverage of regions of 50% and 90%."""
        rows = {}
        for name, one in answers.items():
            half, most = (row for _, row in one.coverage([0.5, 0.9]).iterrows())
            summary, region = one.summary(), "central" if one.density is None else "density"
            rows[name] = {
                "simulations": len(one),
                "sbc_pvalue": summary["pvalue"],
                "symmetry": summary["symmetry"],
                "coverage_50": half[region],
                "coverage_90": most[region],
                "tarp_50": half["distance"],
                "tarp_90": most["distance"],
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    def figures(self, answers: Mapping[str, Calibration]) -> dict[str, Figure]:
        """Plot each guide's ranks and coverage."""
        return {f"calibration-{name}": one.plot() for name, one in answers.items()}

    def caption(self, figure: str) -> str:
        """Return the caption of a guide's figure."""
        return (
            f"{figure.removeprefix('calibration-')}: left, distribution of the ranks less the uniform one, with "
            "simultaneous 95% bands; right, how often regions of a stated probability contain the true latents."
        )
