"""Tables of numbers as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

UNRELIABLE = " (unreliable)"
_FORMATS = {
    "khat_over_limit": "{:.1%}", "seconds": "{:.1f}", "ess": "{:.0f}", "steps": "{:.0f}", "seeds": "{:.0f}",
    "difference_df": "{:.1f}", "num_data": "{:.0f}", "simulations": "{:.0f}", "sbc_pvalue": "{:.3g}",
    "folds": "{:.0f}", "symmetry": "{:.3g}", "unreliable": "{:.1%}", "refuted": "{:.1%}", "gaps_unreliable": "{:.1%}",
    "gaps_refuted": "{:.1%}", "missing": "{:.0f}", "p_worse": "{:.2f}", "weight": "{:.2f}", "weight_se": "{:.2f}",
}  # fmt: skip


def formatted(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of numbers as text, each column in the format that fits it."""
    text = {name: [_cell(str(name), value) for value in column] for name, column in table.items()}
    index = table.index
    if "reliable" in table:  # the mark is where the eye is
        marks = ["" if reliable else UNRELIABLE for reliable in table["reliable"]]
        index = pd.Index([f"{name}{mark}" for name, mark in zip(index, marks, strict=True)], name=index.name)
    return pd.DataFrame(text, index=index)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "NO"
    return _FORMATS.get(name, "{:.3f}").format(value) if pd.notna(value) else ""


def score_table(scores: Mapping[str, pd.DataFrame], value: str = "value", error: str = "se") -> pd.DataFrame:
    """Tabulate scores by name, one column per score, with standard errors in brackets."""
    return pd.DataFrame({
        name: {score: f"{row[value]:.3f} ({row[error]:.3f})" for score, row in table.iterrows()}
        for name, table in scores.items()
    }).T  # fmt: skip


def summary_means(answers: Sequence[Any], names: Mapping[str, str]) -> dict[str, float]:
    """Return means over answers of entries of their summaries.

    Args:
        answers: answers with a ``summary()``.
        names: names of the entries, by those of the columns that they become.
    """
    summaries = [one.summary() for one in answers]
    return {column: float(np.mean([s[name] for s in summaries])) for column, name in names.items()}


def summary_table(answers: Mapping[str, Any]) -> pd.DataFrame:
    """Return the summaries of answers, one row per fit."""
    return pd.DataFrame.from_dict({fit: one.summary() for fit, one in answers.items()}, orient="index")
