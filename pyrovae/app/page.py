"""One self-contained HTML page: tables and figures, nothing fetched from elsewhere."""

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
from pyrovae.data import Data
from pyrovae.diagnostics.diagnostic import Diagnostic, diagnostics
from pyrovae.diagnostics.evidence.evaluate import Evaluation
from pyrovae.diagnostics.tables import formatted
from pyrovae.saving import RunFolder
from pyrovae.training import Fit

_DPI, _SHOWN_DPI = 150, 110  # of the files; of the page, where a dense screen shows the rest


@dataclass
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        text: a paragraph under it.
        table: of numbers, formatted by :func:`formatted`.
        figures: by the name of their file.
        code: shown as it is.
        captions: returns what a figure shows, by its name.
    """

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    figures: dict[str, Figure] = field(default_factory=dict)
    code: str = ""
    captions: Callable[[str], str | None] = str


def write_page(folder: RunFolder, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write ``report.html``, and each figure as a file of ``figures/`` too."""
    environment = Environment(loader=PackageLoader("pyrovae.app", "."), autoescape=True)
    described = [
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
    text = environment.get_template("report.html.jinja").render(title=title, subtitle=subtitle, sections=described)
    folder.write("report.html", text)


def _drawn(folder: RunFolder, name: str, figure: Figure, caption: str | None) -> dict[str, Any]:
    """One rendering of a figure: the file's bytes are the page's."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=_DPI, format="png")
    folder.write(f"figures/{name}.png", drawn.getvalue())
    png = base64.b64encode(drawn.getvalue()).decode()
    return {"caption": caption or name, "png": png, "width": round(_SHOWN_DPI * figure.get_figwidth())}


_TEXT = (
    "Nats per observation, higher is better. log_evidence is estimated by importance sampling with the guide as "
    "proposal; "
    "difference is to the best, with the standard error of the paired differences; khat_over_limit is the share of "
    "data whose weights are not to be trusted, as their Pareto k-hat is above min(1 - 1 / log10 S, 0.7) for S weights. "
    "A row marked NO under reliable, where that is more than one in ten, is too low by an unknown amount: its place "
    "says as much of its guide as of its model. seconds are those of a fit."
)
_SEEDS = (
    " With several seeds, errors are those for new data and new seeds at once; the tables below have one row per fit, "
    "and "
    "their figures are of the first seed's fits."
)
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
    "worst": "The test data whose importance weights under the best guide are least to be trusted, with their k-hat.",
    "pictures": "Test data; the mean of each guide's posterior predictive draws of them; new data drawn from each "
    "fitted model.",
}
_PICTURES = 16


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
        fits: one per seed, by name.
        found: of the fits, on the same test data.
        shown: the test data, drawn as pictures when they are pictures.
        pictures: rows of pictures to draw below them, by what they show.
        configuration: of the run, shown as it is.
    """
    table, best = found.table, found.table.index[0]
    seeds = len(found.evaluations[best])
    first = {name: run[0] for name, run in found.evaluations.items()}
    text = _TEXT + (_SEEDS if seeds > 1 else "")
    figures = {"comparison": plots.comparison(table), "pareto": plots.pareto(table, seconds=found.seconds)}
    sections = [Section("Comparison", text, table, figures, captions=_CAPTIONS.get)]
    sections += [_of_diagnostic(diagnostic, found) for diagnostic in _answered(found)]
    details = _details(fits, first, best, shown, pictures)
    sections.append(Section("Details", " ".join(found.answers.notes), figures=details, captions=_CAPTIONS.get))
    sections.append(Section("Configuration", code=configuration))
    subtitle = (
        f"{len(first[best])} test data, {first[best].num_particles} importance samples each, "
        f"{seeds} seed{'s' if seeds > 1 else ''}, torch {torch.__version__}"
    )
    write_page(folder, f"{len(fits)} strategies compared", subtitle, sections)


def _answered(found: Findings) -> list[Diagnostic]:
    return [diagnostic for name, diagnostic in diagnostics().items() if name in found.answers.found]


def _of_diagnostic(diagnostic: Diagnostic, found: Findings) -> Section:
    """Return a diagnostic's section: a table of all fits, and figures of each first fit, the best strategy first."""
    answers = found.answers.by_fit(diagnostic.name)
    figures = diagnostic.figures(found.answers.of_first(diagnostic.name, list(found.table.index)))
    text = f"{diagnostic.text} {diagnostic.notes(answers)}".strip()
    return Section(diagnostic.title, text, diagnostic.table(answers), figures, captions=diagnostic.caption)


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


def _html(table: pd.DataFrame) -> str:
    return str(formatted(table).rename_axis(None).to_html(border=0))
