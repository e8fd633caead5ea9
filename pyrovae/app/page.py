"""One self-contained HTML page: tables and figures, nothing fetched from elsewhere."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from pyrovae import plots
from pyrovae.app.comparison import Findings, Latents
from pyrovae.data import Data
from pyrovae.diagnostics.calibration.ranks import Ranks
from pyrovae.diagnostics.calibration.sbc import Calibration
from pyrovae.diagnostics.evidence.evaluate import Evaluation
from pyrovae.diagnostics.evidence.gaps import Gaps
from pyrovae.importance.psis import trusted_on_average
from pyrovae.saving import RunFolder
from pyrovae.training import Fit

_DPI, _SHOWN_DPI = 150, 110  # of the files; of the page, where a dense screen shows the rest
_FORMATS = {
    "khat_over_limit": "{:.1%}", "seconds": "{:.1f}", "ess": "{:.0f}", "steps": "{:.0f}", "seeds": "{:.0f}",
    "difference_df": "{:.1f}", "num_data": "{:.0f}", "simulations": "{:.0f}", "sbc_pvalue": "{:.3g}",
    "symmetry": "{:.3g}", "unreliable": "{:.1%}", "refuted": "{:.1%}", "gaps_unreliable": "{:.1%}",
    "gaps_refuted": "{:.1%}",
}  # fmt: skip


@dataclass
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        text: a paragraph under it.
        table: of numbers, formatted by :func:`formatted`.
        figures: by the name of their file, which :func:`_caption` explains.
        code: shown as it is.
    """

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    figures: dict[str, Figure] = field(default_factory=dict)
    code: str = ""


def formatted(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of numbers as text, each column in the format that fits it."""
    text = {name: [_cell(str(name), value) for value in column] for name, column in table.items()}
    return pd.DataFrame(text, index=table.index)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "NO"
    return _FORMATS.get(name, "{:.3f}").format(value) if pd.notna(value) else ""


def write_page(folder: RunFolder, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write ``report.html``, and each figure as a file of ``figures/`` too."""
    environment = Environment(loader=PackageLoader("pyrovae.app", "."), autoescape=True)
    described = [
        {
            "title": section.title,
            "text": section.text,
            "code": section.code,
            "table": None if section.table is None else _html(section.table),
            "figures": [_drawn(folder, name, figure) for name, figure in section.figures.items()],
        }
        for section in sections
    ]
    text = environment.get_template("report.html.jinja").render(title=title, subtitle=subtitle, sections=described)
    folder.write("report.html", text)


def _drawn(folder: RunFolder, name: str, figure: Figure) -> dict[str, Any]:
    """One rendering of a figure: the file's bytes are the page's."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=_DPI, format="png")
    folder.write(f"figures/{name}.png", drawn.getvalue())
    png = base64.b64encode(drawn.getvalue()).decode()
    return {"caption": _caption(name), "png": png, "width": round(_SHOWN_DPI * figure.get_figwidth())}


_TEXTS = {
    "Comparison": "Nats per datum, higher is better. log_evidence is estimated by importance sampling with the guide "
    "as proposal; difference is to the best, with the standard error of the paired differences; khat_over_limit is the "
    "share of data whose weights are not to be trusted, as their Pareto k-hat is above min(1 - 1 / log10 S, 0.7) for "
    "S weights. A row marked NO under reliable, where that is more than one in ten, is too low by an unknown amount: "
    "its place says as much of its guide as of its model. seconds are those of a fit.",
    "seeds": " With several seeds, errors are those for new data and new seeds at once, and what follows below the "
    "comparison is of the first seed's fits.",
    "Where the bound loses": "log p(x) less the guide's ELBO, split at the ELBO of the family's best member for each "
    "datum: what the family cannot express (approximation), and what the encoder does not find (amortization). "
    "Of the first num_data test data; log_evidence is by annealing from the prior, which does not trust the guide, and "
    "from the guide where that fails. unreliable: share of the data whose log_evidence is not to be trusted, which is "
    "too low then, and the approximation gap too small; NO under reliable: more than one in ten. refuted: share whose "
    "log_evidence lies below a lower bound, a failure of the estimate, and no gap: left out of the means of "
    "log_evidence and approximation.",
    "Calibration": "Latents and data simulated from each fitted model; the latents ranked among the guide's draws "
    "given the data. sbc_pvalue: the smallest of all quantities, corrected for their number: small where the guide is "
    "not the posterior on average. symmetry: the same for ranks that "
    "lean to one side. coverage: share of simulations inside the guide's 50% and 90% regions of highest "
    "density (central intervals where the guide has no density), and within as probable balls around a "
    "reference point (TARP).",
    "Latents": "The rate, and what it is made of: mutual information of datum and code (with an upper bound for the "
    "population; the first is at most the log of the number of data), total correlation of the latents, and their "
    "distances to the prior one by one. used: latents whose rate is not next to 0.",
    "Labels": "Of codes and labels that no fit has seen: clusters by k-means, nearest neighbours, a linear probe; "
    "majority is the share of the commonest label.",
    "Draws": "Draws of each model beside held-out data, by nearest neighbours; the row data compares one half of the "
    "held-out data with the other, which is what a perfect model would come to. marginal_pvalue: the smallest over all "
    "features of a test that held-out data have the model's marginals, corrected for their number.",
}
_CAPTIONS = {
    "comparison": "Left: mean log evidence and ELBO of the test data; right: paired difference to the best. Bars are "
    "two standard errors on the left, 95% intervals on the right. Hollow: log evidence is not to be trusted.",
    "pareto": "Log evidence, less the best's, against the time of a fit; up and to the left is better. Bars are 95% "
    "intervals of paired differences, and two standard errors of the mean time. Hollow: log evidence is not to be "
    "trusted.",
    "reliability": "Left: share of the test data with a k-hat at or below the value; beyond the dashed limit the "
    "importance weights are not to be trusted. Right: the same for log evidence - ELBO, the divergence from guide to "
    "posterior.",
    "training": "Bound while training: mean over an epoch, and on the validation data.",
    "gaps": "Mean gaps of each guide; whiskers are two standard errors of paired differences. Hollow: the "
    "evidence is not to be trusted, and the gap too small.",
    "worst": "The test data whose importance weights under the best guide are least to be trusted, with their k-hat.",
    "pictures": "Test data; the mean of each guide's posterior predictive draws of them; new data drawn from each "
    "fitted model.",
    "usage": "Latents by what they hold of the data. Left: rates; right: variance over the data of a code, as a share "
    "of the whole.",
    "aggregate": "What the rates are made of; whiskers are two standard errors.",
    "codes": "Codes of test data: the first two principal components of the posterior means, coloured by label.",
    "labels": "Scores of codes against labels; bars are two standard errors.",
    "quality": "Scores of each model's draws, and (grey) of held-out data against other held-out data; bars are two "
    "standard errors.",
    "marginals": "Ranks of every feature of the test data in the best model's marginals, less what uniform ranks would "
    "give; features that leave their own 95% band are named (the table's p-value is corrected for their number).",
}
_PICTURES = 16


def gap_table(gaps: Mapping[str, Gaps]) -> pd.DataFrame:
    """Tabulate gaps by name: both, with the standard errors of their paired differences, and what they lie between.

    ``reliable``: whether the evidence of nine data in ten, at least, is to be trusted.
    """
    columns = ["num_data", "log_evidence", "optimal_elbo", "elbo"]
    columns += [f"{kind}{end}" for kind in ("approximation", "amortization") for end in ("", "_se")]
    columns += ["unreliable", "refuted"]
    rows = {}
    for name, found in gaps.items():
        summary = found.summary()
        rows[name] = {
            **{key: summary[key] for key in columns[:4]},
            "reliable": trusted_on_average(found.reliable),
            **{key: summary[key] for key in columns[4:]},
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def latent_table(latents: Mapping[str, Latents]) -> pd.DataFrame:
    """Tabulate what latents hold by name, in nats per datum, with standard errors, and how many are in use."""
    columns = ["distortion", "rate", "mutual_information", "mutual_information_upper", "marginal_kl"]
    columns += ["total_correlation", "dimension_wise"]
    rows = {}
    for name, found in latents.items():
        summary = found.aggregate.summary()
        layers = {
            f"used, {layer}": f"{row['used']} of {row['latents']}" for layer, row in found.usage.layers.iterrows()
        }
        rows[name] = {**{key: f"{summary[key]:.2f} ({summary[f'{key}_se']:.2f})" for key in columns}, **layers}
    return pd.DataFrame.from_dict(rows, orient="index")


def calibration_table(calibration: Mapping[str, Calibration]) -> pd.DataFrame:
    """Tabulate calibration by name: corrected p-values, and coverage of regions of 50% and 90%."""
    rows = {}
    for name, found in calibration.items():
        half, most = (row for _, row in found.coverage([0.5, 0.9]).iterrows())
        summary, held = found.summary(), "central" if found.density is None else "density"
        rows[name] = {
            "simulations": len(found),
            "sbc_pvalue": summary["pvalue"],
            "symmetry": summary["symmetry"],
            "coverage_50": half[held],
            "coverage_90": most[held],
            "tarp_50": half["distance"],
            "tarp_90": most["distance"],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def score_table(scores: Mapping[str, pd.DataFrame], value: str = "value", error: str = "se") -> pd.DataFrame:
    """Tabulate scores by name, a column a score, with standard errors in brackets."""
    return pd.DataFrame({
        name: {score: f"{row[value]:.3f} ({row[error]:.3f})" for score, row in table.iterrows()}
        for name, table in scores.items()
    }).T  # fmt: skip


def quality_table(quality: Mapping[str, pd.DataFrame], marginals: Mapping[str, Ranks]) -> pd.DataFrame:
    """Tabulate the quality of draws by name, and of held-out data beside themselves."""
    table = score_table(quality, "model", "model_se")
    table["marginal_pvalue"] = pd.Series({n: f"{float(r.table()['adjusted'].min()):.3g}" for n, r in marginals.items()})
    held = score_table({"data": next(iter(quality.values()))}, "data", "data_se")
    return pd.concat([table, held]).fillna("")


def comparison_page(
    folder: RunFolder,
    fits: Mapping[str, Sequence[Fit]],
    found: Findings,
    shown: Data,
    pictures: Mapping[str, Any],
    *,
    configuration: str,
) -> None:
    """Write ``report.html`` and ``figures/`` of a comparison.

    Args:
        folder: to write into.
        fits: one a seed, by name.
        found: of the fits, on the same test data.
        shown: the test data, drawn as pictures when they are pictures.
        pictures: rows of pictures to draw below them, by what they show.
        configuration: of the run, shown as it is.
    """
    table, best = found.table, found.table.index[0]
    seeds = len(found.evaluations[best])
    first = {name: run[0] for name, run in found.evaluations.items()}
    sections = [
        Section(
            "Comparison",
            _TEXTS["Comparison"] + (_TEXTS["seeds"] if seeds > 1 else ""),
            table,
            {"comparison": plots.comparison(table), "pareto": plots.pareto(table, seconds=found.seconds)},
        )
    ]
    if found.gaps:
        figures = {"gaps": plots.gaps(found.gaps)}
        failures = " ".join(f"{name}{one.failure}." for name, one in found.gaps.items() if one.failure)
        text = f"{_TEXTS['Where the bound loses']} {failures}".strip()
        sections.append(Section("Where the bound loses", text, gap_table(found.gaps), figures))
    if found.calibration:
        figures = {f"calibration-{name}": one.plot() for name, one in found.calibration.items()}
        sections.append(Section("Calibration", table=calibration_table(found.calibration), figures=figures))
    if found.latents:
        figures = {
            "usage": plots.usage({name: one.usage for name, one in found.latents.items()}),
            "aggregate": plots.aggregate({name: one.aggregate for name, one in found.latents.items()}),
        }
        sections.append(Section("Latents", table=latent_table(found.latents), figures=figures))
    if found.codes:
        figures = {"codes": plots.codes(found.codes, found.classes)}
        if found.labels:
            figures["labels"] = plots.scores(found.labels)
        sections.append(Section("Labels", table=score_table(found.labels) if found.labels else None, figures=figures))
    if found.quality:
        figures = {"quality": plots.scores({n: t.drop(index="frechet") for n, t in found.quality.items()})}
        if best in found.marginals:
            figures["marginals"] = plots.ranks(found.marginals[best])
        sections.append(Section("Draws", table=quality_table(found.quality, found.marginals), figures=figures))
    sections.append(Section("Details", " ".join(found.notes), figures=_details(fits, first, best, shown, pictures)))
    for section in sections:
        section.text = section.text or _TEXTS.get(section.title, "")
    sections.append(Section("Configuration", code=configuration))
    judged = first[best]
    subtitle = (
        f"{len(judged)} test data, {judged.num_particles} importance samples each, "
        f"{seeds} seed{'s' if seeds > 1 else ''}, torch {torch.__version__}"
    )
    write_page(folder, f"{len(fits)} strategies compared", subtitle, sections)


def _details(
    fits: Mapping[str, Sequence[Fit]],
    first: Mapping[str, Evaluation],
    best: str,
    shown: Data,
    pictures: Mapping[str, Any],
) -> dict[str, Figure]:
    histories = {
        name if len(run) == 1 else f"{name}, seed {k}": one.history
        for name, run in fits.items()
        for k, one in enumerate(run[:1])
    }
    figures = {"reliability": plots.reliability(first), "training": plots.training(histories)}
    if shown.image_shape is not None:
        count = min(_PICTURES, len(shown))
        originals = shown.batch(slice(0, count))[0].cpu().numpy()
        rows = {"test data": originals, **{title: images[:count] for title, images in pictures.items()}}
        figures["pictures"] = plots.pictures(rows, shown.image_shape)
        figures["worst"] = plots.worst(first[best], shown)
    return figures


def _caption(name: str) -> str:
    if name.startswith("calibration-"):
        return (
            f"{name.removeprefix('calibration-')}: left, ranks less what uniform ranks would give, with simultaneous "
            "95% bands; right, how often regions of a stated probability hold the latents that data came from."
        )
    return _CAPTIONS[name]


def _html(table: pd.DataFrame) -> str:
    return str(formatted(table).rename_axis(None).to_html(border=0))
