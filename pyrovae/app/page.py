"""One self-contained HTML page of tables and figures; it loads nothing from elsewhere."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import pandas as pd
import torch
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from pyrovae import plots
from pyrovae.app.comparison import Findings
from pyrovae.common.weights import most_drawn
from pyrovae.data import Data, Table
from pyrovae.diagnostics.diagnostic import Diagnostic, diagnostics
from pyrovae.diagnostics.evidence.evaluate import Evaluation
from pyrovae.diagnostics.tables import formatted
from pyrovae.saving import RunFolder
from pyrovae.training import Fit

_DPI, _SHOWN_DPI = 150, 110  # of the files; of the page, where a dense screen shows more detail


@dataclass
class Section:
    """A part of a page.

    Attributes:
        title: heading of the section.
        text: paragraph under the heading.
        table: table of numbers, which :func:`formatted` formats.
        figures: figures by the name of their file.
        code: text that is shown unchanged.
        captions: returns the caption of a figure from its name.
    """

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    figures: dict[str, Figure] = field(default_factory=dict)
    code: str = ""
    captions: Callable[[str], str | None] = str


def write_page(folder: RunFolder, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write ``report.html``, and each figure also as a file in ``figures/``."""
    _see_that_names_differ(sections)
    environment = Environment(loader=PackageLoader("pyrovae.app", "."), autoescape=True)
    parts = [
        {
            "title": section.title,
            "text": section.text,
            "code": section.code,
            "table": None if section.table is None else _html(section.table),
            "figures": [
                _drawn(folder, name, figure, section.captions(name)) for name, figure in section.figures.items()
            ],
        }
        for section in sections
    ]
    text = environment.get_template("report.html.jinja").render(title=title, subtitle=subtitle, sections=parts)
    folder.write("report.html", text)


def _see_that_names_differ(sections: Sequence[Section]) -> None:
    names = [name for section in sections for name in section.figures]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two figures of the page are named {twice!r}: give the one of your diagnostic another name")


def _drawn(folder: RunFolder, name: str, figure: Figure, caption: str | None) -> dict[str, Any]:
    """Render a figure once: the file and the page hold the same bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, dpi=_DPI, format="png")
    folder.write(f"figures/{name}.png", buffer.getvalue())
    png = base64.b64encode(buffer.getvalue()).decode()
    return {"caption": caption or name, "png": png, "width": round(_SHOWN_DPI * figure.get_figwidth())}


_TEXT = (
    "Nats per observation, higher is better. log_evidence is estimated by importance sampling with the guide as "
    "proposal; difference is to the reference, or to the best where none is named, with the standard error of the "
    "paired differences; khat_over_limit is the share of data whose weights are unreliable, as their Pareto k-hat is "
    "above min(1 - 1 / log10 S, 0.7) for S weights. A row is marked NO under reliable where that share is more than "
    "one in ten: its log_evidence is too low by an unknown amount, and its place depends on its guide as much as on "
    "its model: take more particles or a richer guide, or anneal (pyrovae.evidence). seconds are those of a fit; ended "
    "says how the fits ended, by their validation bounds."
)
_SEEDS = (
    " With several seeds, errors are those for new data and new seeds at once; the tables below have one row per fit, "
    "and their figures are of the first seed's fits."
)
_CAPTIONS = {
    "comparison": "Left: mean log evidence and ELBO of the test data; right: paired difference to the best, or to the "
    "reference. Bars are two standard errors on the left, 95% intervals on the right. Hollow: log evidence is "
    "unreliable.",
    "pareto": "Log evidence minus the best's, or the reference's, against the time of a fit; up and to the left is "
    "better. Bars are 95% intervals of paired differences, and two standard errors of the mean time. Hollow: log "
    "evidence is unreliable.",
    "reliability": "Left: share of the test data with a k-hat at or below the value; beyond the dashed limit the "
    "importance weights are unreliable. Right: the same for log evidence - ELBO, the divergence from guide to "
    "posterior.",
    "training": "Bound during training: mean over an epoch, and on the validation data.",
    "worst": "The test data whose importance weights under the best guide are least reliable, with their k-hat.",
    "pictures": "Test data; the mean of each guide's posterior predictive draws of them; new data drawn from each "
    "fitted model.",
}
_EFFECTS = (
    "What each guide and each objective gives on average over the others: its mean log evidence minus the mean of all "
    "strategies, paired over test data and seeds, in nats per observation."
)
_FOLDS = (
    "Nats per observation, higher is better. Every observation is evaluated once, by the fit that did not see it. The "
    "folds share most of their training data, so that errors are Nadeau and Bengio's (2003), with one degree of "
    "freedom less than folds; they are rough where the folds are few. reliable and khat_over_limit are as for a "
    "single split: a row marked NO depends on its guide as much as on its model. Further questions are asked of one "
    "split, without folds."
)
_WEIGHTS = (
    " The data have survey weights: the means and errors here are weighted. The questions below are asked of rows "
    "drawn by their weights, none of them twice, at most {count} of {size}; arviz_compare.csv is left out, as ArviZ's "
    "table takes no weights."
)
_COLUMNS = (
    "The table's columns. fits_badly: p-value of a test that held-out cells of the column have the marginal "
    "distribution of the first fit of {best}, corrected for the number of columns; a small one says that they have not."
)
_ROWS = (
    "The test rows with the lowest log evidence under the first fit of {best}: the least probable ones, by their names "
    "in the file, or by their numbers in it, counted from 0."
)
_ODD_ROWS = 10
_PICTURES = 16


def comparison_page(
    folder: RunFolder,
    fits: Mapping[str, Sequence[Fit]],
    findings: Findings,
    test: Data,
    pictures: Mapping[str, Any],
    *,
    configuration: str,
) -> None:
    """Write ``report.html`` and ``figures/`` of a comparison.

    Args:
        folder: folder to write into.
        fits: fits by name, one per seed.
        findings: results about the fits, all on the same test data.
        test: the test data, drawn as pictures when they are pictures.
        pictures: rows of pictures to draw below the test data, by title.
        configuration: configuration of the run, which is shown unchanged.
    """
    table, best = findings.table, findings.table.index[0]
    seeds = len(findings.evaluations[best])
    first = {name: run[0] for name, run in findings.evaluations.items()}
    text = _TEXT + (_SEEDS if seeds > 1 else "") + _weighted(first[best].weights)
    figures = {"comparison": plots.comparison(table), "pareto": plots.pareto(table, seconds=findings.seconds)}
    sections = [Section("Comparison", text, findings.own_table, figures, captions=_CAPTIONS.get)]
    if findings.effects is not None:
        joined = [f"{factor}: {level}" for factor, level in findings.effects.index]
        sections.append(Section("Main effects", _EFFECTS, findings.effects.set_axis(joined)))
    sections += [_of_diagnostic(diagnostic, findings) for diagnostic in _answered(findings)]
    sections += _of_table(findings, first[best], best, test)
    details = _details(fits, first, best, test, pictures)
    sections.append(Section("Details", " ".join(findings.answers.notes), figures=details, captions=_CAPTIONS.get))
    sections.append(Section("Configuration", code=configuration))
    subtitle = (
        f"{len(first[best])} test data, {first[best].num_particles} importance samples each, "
        f"{seeds} seed{'s' if seeds > 1 else ''}, torch {torch.__version__}"
    )
    write_page(folder, f"{len(fits)} strategies compared", subtitle, sections)


def cross_validation_page(
    folder: RunFolder, fits: Mapping[str, Sequence[Fit]], table: pd.DataFrame, *, configuration: str
) -> None:
    """Write ``report.html`` and ``figures/`` of a cross-validation, from its table and its fits by name."""
    figures = {"comparison": plots.comparison(table)}
    curves = {"training": plots.training({name: run[0].history for name, run in fits.items()})}
    sections = [
        Section("Cross-validation", _FOLDS, table, figures, captions=_CAPTIONS.get),
        Section("Fits of the first fold", figures=curves, captions=_CAPTIONS.get),
        Section("Configuration", code=configuration),
    ]
    folds = int(table["folds"].iloc[0])
    write_page(folder, f"{len(fits)} strategies compared", f"{folds} folds, torch {torch.__version__}", sections)


def _of_table(findings: Findings, evaluation: Evaluation, best: str, test: Data) -> list[Section]:
    """Return the sections about a table's columns and its oddest rows; none for other data."""
    if not isinstance(test, Table):
        return []
    columns = test.describe()[["type", "role", "missing", "range", "levels", "likelihood"]]
    draws = findings.answers.found.get("draws", {}).get(best)
    if draws:
        pvalues = draws[0].marginals.table()["adjusted"].rename(lambda name: str(name).split(": ")[-1])
        columns = columns.assign(fits_badly=pvalues.reindex(columns.index).map(lambda p: "" if p != p else f"{p:.2g}"))
    rows = evaluation.table().sort_values("log_evidence").head(_ODD_ROWS)
    return [
        Section("Columns", _COLUMNS.format(best=best), columns),
        Section("Oddest rows", _ROWS.format(best=best), rows[["log_evidence", "log_evidence_se", "khat", "reliable"]]),
    ]


def _weighted(weights: Any) -> str:
    if weights is None:
        return ""
    return _WEIGHTS.format(count=most_drawn(weights), size=len(weights))


def _answered(findings: Findings) -> list[Diagnostic]:
    return [diagnostic for name, diagnostic in diagnostics().items() if name in findings.answers.found]


def _of_diagnostic(diagnostic: Diagnostic, findings: Findings) -> Section:
    """Return a diagnostic's section: a table of all fits, and figures of the first fits, the best strategy first."""
    answers = findings.answers.by_fit(diagnostic.name)
    figures = diagnostic.figures(findings.answers.of_first(diagnostic.name, list(findings.table.index)))
    text = f"{diagnostic.text} {diagnostic.notes(answers)}".strip()
    return Section(diagnostic.title, text, diagnostic.table(answers), figures, captions=diagnostic.caption)


def _details(
    fits: Mapping[str, Sequence[Fit]],
    first: Mapping[str, Evaluation],
    best: str,
    test: Data,
    pictures: Mapping[str, Any],
) -> dict[str, Figure]:
    histories = {
        name if len(run) == 1 else f"{name}, seed {k}": fit.history
        for name, run in fits.items()
        for k, fit in enumerate(run[:1])
    }
    figures = {"reliability": plots.reliability(first), "training": plots.training(histories)}
    if test.image_shape is not None:
        count = min(_PICTURES, len(test))
        originals = test.batch(slice(0, count))[0].cpu().numpy()
        rows = {"test data": originals, **{title: images[:count] for title, images in pictures.items()}}
        figures["pictures"] = plots.pictures(rows, test.image_shape)
        figures["worst"] = plots.worst(first[best], test)
    return figures


def _html(table: pd.DataFrame) -> str:
    return str(formatted(table).rename_axis(None).to_html(border=0))
