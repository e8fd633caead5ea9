"""The fit and the data that a command asks about, and the folder of its answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyrovae.app.evaluate_command import held_out
from pyrovae.app.folders import CONFIG, inputs
from pyrovae.app.models import per_observation
from pyrovae.data import Data
from pyrovae.saving import RunFolder
from pyrovae.training import load


@dataclass(frozen=True)
class RunQuestion:
    """What a command asks about.

    Attributes:
        pair: the fitted programs, for questions about single observations.
        data: the data in question.
        test: the test data of the run; None where they were not asked for.
        folder: folder of the answer.
    """

    pair: tuple[Any, Any]
    data: Data
    test: Data | None
    folder: RunFolder

    def write(self, name: str, frame: pd.DataFrame) -> None:
        """Write a table whose rows are observations."""
        self.folder.write_table(name, frame, index_label="datum")

    def write_like_the_data(self, name: str, frame: pd.DataFrame) -> None:
        """Write a table in the columns of the data: with the rows' names in front, unless a column holds them."""
        ids = () if self.data.encoding is None else self.data.encoding.of_role("id")
        named = bool(ids) and all(c.name in frame.columns for c in ids)
        self.folder.write_table(name, frame, index=not named, **({} if named else {"index_label": "datum"}))

    def write_array(self, name: str, values: Any) -> None:
        """Write numbers as a ``.npy`` file."""
        from io import BytesIO

        buffer = BytesIO()
        np.save(buffer, np.asarray(values))
        self.folder.write(name, buffer.getvalue())

    def write_figure(self, name: str, figure: Any) -> None:
        """Write a figure as a PNG file."""
        from io import BytesIO

        buffer = BytesIO()
        figure.savefig(buffer, dpi=150, format="png")
        self.folder.write(name, buffer.getvalue())


@contextmanager
def run_question(
    run: str, data: Data | None, table: str | None, out: str, names: list[str], *, with_test: bool = False
) -> Iterator[RunQuestion]:
    """Load a fit and the data in question, and prepare the folder of the answer.

    Args:
        run: folder of a run, or of one fit of a comparison.
        data: data set; None means the run's test data.
        table: path of a table that is read as the fit's own was; None takes ``data``.
        out: folder of the answer.
        names: names of the files that will be written.
        with_test: whether the run's test data are needed beside.

    Raises:
        ValueError: in one sentence, before anything is written.
    """
    folder, target = Path(run), RunFolder(out)
    fitted = load(folder)
    files = [*([] if data is None else inputs(data)), *([] if table is None else [Path(table)])]
    target.check(names, [*files, folder / CONFIG])
    chosen = held_out(folder, fitted, data, table)
    new = data is not None or table is not None
    test = held_out(folder, fitted, None, None) if with_test and new else None
    with target.locked():
        target.begin()
        yield RunQuestion(per_observation(fitted), chosen, test, target)
