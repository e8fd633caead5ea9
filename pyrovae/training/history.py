"""The record of a fit: a row a step."""

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.training.step import MEASURED

COLUMNS = ("step", "epoch", "seconds", *MEASURED, "lr", "validation_bound")
_PENDING = 256


class History:
    """Rows of a fit, kept on the device until they are read, so that a step waits for nothing."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._pending: list[tuple[tuple[float, ...], Tensor]] = []
        self.failed = math.nan, math.nan

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._rows) + len(self._pending)

    def append(self, step: int, epoch: int, seconds: float, measured: Tensor, lr: float) -> None:
        """Add a step's row."""
        self._pending.append(((step, epoch, seconds, lr), measured))
        if len(self._pending) >= _PENDING:
            self.flush()

    def validated(self, bound: float) -> None:
        """Write the validation bound into the last row."""
        self.flush()
        self._rows[-1][-1, COLUMNS.index("validation_bound")] = bound

    def cut_at_first_not_finite(self) -> int:
        """Drop the rows from the first whose loss or gradient is not finite; keep these two, and return its step."""
        rows = self.array()
        judged = rows[:, [COLUMNS.index("loss"), COLUMNS.index("grad_norm")]]
        bad = int(np.argmin((np.isfinite(judged[:, 0]) & ~np.isinf(judged[:, 1])).astype(int)))
        self.failed = float(judged[bad, 0]), float(judged[bad, 1])
        step = int(rows[bad, 0])
        self._rows = [rows[:bad]] if bad else []
        return step

    def flush(self) -> None:
        """Fetch from the device what is pending."""
        if not self._pending:
            return
        measured = torch.stack([values for _, values in self._pending]).double().cpu().numpy()
        known = np.array([row for row, _ in self._pending])
        validation = np.full((len(known), 1), math.nan)
        self._rows.append(np.hstack([known[:, :3], measured, known[:, 3:], validation]))
        self._pending = []

    def last(self, name: str) -> float:
        """Return the last row's value of a column."""
        self.flush()
        return float(self._rows[-1][-1, COLUMNS.index(name)]) if self._rows else math.nan

    def array(self) -> np.ndarray:
        """Return all rows, ``[steps, columns]``."""
        self.flush()
        self._rows = [np.concatenate(self._rows)] if self._rows else []
        return self._rows[0] if self._rows else np.empty((0, len(COLUMNS)))

    def frame(self) -> pd.DataFrame:
        """Return all rows as a table."""
        table = pd.DataFrame(self.array().copy(), columns=list(COLUMNS))
        return table.astype({"step": int, "epoch": int})

    @classmethod
    def from_array(cls, rows: np.ndarray) -> "History":
        """Continue a record."""
        history = cls()
        if len(rows):
            history._rows = [np.array(rows)]
        return history
