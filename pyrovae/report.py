"""One self-contained HTML page: tables and figures, nothing fetched from elsewhere."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, PackageLoader

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = {"khat_over_0.7": "{:.1%}", "seconds": "{:.1f}", "ess": "{:.0f}"}


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
    figures: dict[str, "Figure"] = field(default_factory=dict)
    code: str = ""


def formatted(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of numbers as text, each column in the format that fits it."""
    text = {
        name: [_FORMATS.get(str(name), "{:.3f}").format(value) if pd.notna(value) else "" for value in column]
        for name, column in table.items()
    }
    return pd.DataFrame(text, index=table.index)


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


def _html(table: pd.DataFrame) -> str:
    return str(formatted(table).rename_axis(None).to_html(border=0))


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
