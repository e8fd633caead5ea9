"""One self-contained HTML page: tables and figures, nothing fetched from elsewhere."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from pyrovae import plots
from pyrovae.data import Data
from pyrovae.evaluation import Evaluation, Gaps
from pyrovae.training import Fit

_FORMATS = {"khat_over_0.7": "{:.1%}", "seconds": "{:.1f}", "ess": "{:.0f}", "steps": "{:.0f}"}


@dataclass
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        text: a paragraph under it.
        table: of numbers, formatted by :func:`formatted`.
        figures: by caption.
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
    return _FORMATS.get(name, "{:.3f}").format(value) if pd.notna(value) else ""


def page(title: str, subtitle: str, sections: list[Section]) -> str:
    """Return the page as HTML."""
    environment = Environment(loader=PackageLoader("pyrovae", "."), autoescape=True)
    described = [
        {
            "title": section.title,
            "text": section.text,
            "code": section.code,
            "table": None if section.table is None else _html(section.table),
            "figures": [{"caption": caption, "png": _png(figure)} for caption, figure in section.figures.items()],
        }
        for section in sections
    ]
    return environment.get_template("report.html.jinja").render(title=title, subtitle=subtitle, sections=described)


def write_page(path: Path, title: str, subtitle: str, sections: list[Section]) -> None:
    """Write the page to ``path``."""
    path.write_text(page(title, subtitle, sections), encoding="utf-8")


_COMPARISON = (
    "Nats per datum, higher is better. log_evidence is estimated by importance sampling with the guide as proposal; "
    "difference is to the best, with the standard error of the paired differences; khat_over_0.7 is the share of data "
    "whose weights are not to be trusted; seconds are those of fitting."
)
_CAPTIONS = {
    "comparison": "Left: mean log evidence and ELBO of the test data; right: paired difference to the best guide. Bars "
    "are two standard errors.",
    "reliability": "Left: share of the test data with a k-hat at or below the value; beyond 0.7 the importance weights "
    "are not to be trusted. Right: the same for log evidence - ELBO, the divergence from guide to posterior.",
    "training": "Bound while training: mean over an epoch, and on the validation data.",
    "gaps": "Mean gaps of each guide; whiskers are two standard errors of paired differences.",
    "worst": "The test data whose importance weights under the best guide are least to be trusted, with their k-hat.",
    "pictures": "Test data; the mean of each guide's posterior predictive draws of them; new data drawn from each "
    "fitted model.",
}
_GAPS = (
    "log p(x) less the guide's ELBO, split at the ELBO of the family's best member for each datum: what the family "
    "cannot express (approximation), and what the encoder does not find (amortization)."
)
_PICTURES = 16


def gap_table(gaps: Mapping[str, Gaps]) -> pd.DataFrame:
    """Tabulate gaps by name: both, with the standard errors of their paired differences, and what they lie between."""
    columns = ["log_evidence", "optimal_elbo", "elbo"]
    columns += [f"{kind}{end}" for kind in ("approximation", "amortization") for end in ("", "_se")]
    rows = {name: found.summary() for name, found in gaps.items()}
    return pd.DataFrame({name: {key: row[key] for key in columns} for name, row in rows.items()}).T


def comparison_page(
    folder: Path,
    fits: Mapping[str, Fit],
    evaluations: Mapping[str, Evaluation],
    table: pd.DataFrame,
    shown: Data,
    pictures: Mapping[str, Any],
    gaps: Mapping[str, Gaps],
    *,
    configuration: str,
) -> None:
    """Write ``report.html`` and ``figures/`` of a comparison.

    Args:
        folder: to write into.
        fits: by name.
        evaluations: of the same test data, by name.
        table: of :func:`pyrovae.comparison`.
        shown: the test data, drawn as pictures when they are pictures.
        pictures: rows of pictures to draw below them, by what they show.
        gaps: where each bound loses, by name; none leaves that out.
        configuration: of the run, shown as it is.
    """
    figures = {
        "comparison": plots.comparison(table),
        "reliability": plots.reliability(evaluations),
        "training": plots.training({name: fitted.history for name, fitted in fits.items()}),
    }
    if shown.image_shape is not None:
        count = min(_PICTURES, len(shown))
        originals = shown.batch(slice(0, count))[0].cpu().numpy()
        rows = {"test data": originals, **{title: images[:count] for title, images in pictures.items()}}
        figures["pictures"] = plots.pictures(rows, shown.image_shape)
        figures["worst"] = plots.worst(evaluations[table.index[0]], shown)
    if gaps:
        figures["gaps"] = plots.gaps(gaps)
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=150)
    first = evaluations[table.index[0]]
    sections = [
        Section("Comparison", _COMPARISON, table, {_CAPTIONS["comparison"]: figures.pop("comparison")}),
        *(
            [Section("Where the bound loses", _GAPS, gap_table(gaps), {_CAPTIONS["gaps"]: figures.pop("gaps")})]
            if gaps
            else []
        ),
        Section("Details", figures={_CAPTIONS[name]: figure for name, figure in figures.items()}),
        Section("Configuration", code=configuration),
    ]
    subtitle = f"{len(first)} test data, {first.num_particles} importance samples each, torch {torch.__version__}"
    write_page(folder / "report.html", f"{len(fits)} fits compared", subtitle, sections)


def _html(table: pd.DataFrame) -> str:
    return str(formatted(table).rename_axis(None).to_html(border=0))


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
