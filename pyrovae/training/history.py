"""The record of a fit: one row per step."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.training.callbacks import Step
from pyrovae.training.stepper import MEASURED

COLUMNS = ("step", "epoch", "seconds", *MEASURED, "lr", "validation_bound")
_PENDING = 256
DIVERGED = 10  # a fit has diverged if its last loss is above its first by more than this many times the first


class History:
    """The rows of a fit. They stay on the device until they are read, so that no step waits for them.

    Args:
        weights: names of the objective's weights; their columns come after all others.
    """

    def __init__(self, weights: Sequence[str] = ()) -> None:
        self.weights = tuple(weights)
        self._rows: list[np.ndarray] = []
        self._pending: list[tuple[list[float], Tensor]] = []
        self.failed = math.nan, math.nan

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._rows) + len(self._pending)

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        return [*COLUMNS, *self.weight_columns]

    @property
    def weight_columns(self) -> list[str]:
        """Names of the weights' columns; a weight with the name of another column is marked as a weight."""
        return [f"{name} (weight)" if name in COLUMNS else name for name in self.weights]

    def on_step(self, step: Step) -> None:
        """Add a step's row."""
        row = [step.step, step.epoch, step.seconds, step.lr, math.nan, *(step.weights[name] for name in self.weights)]
        self._pending.append((row, step.measured))
        if len(self._pending) >= _PENDING:
            self.flush()

    def validated(self, bound: float) -> None:
        """Write the validation bound into the last row."""
        self.flush()
        self._rows[-1][-1, COLUMNS.index("validation_bound")] = bound

    def cut_at_first_not_finite(self) -> int:
        """Drop all rows from the first whose loss or gradient is not finite; note these two, and return its step."""
        rows = self.array()
        measures = rows[:, [COLUMNS.index("loss"), COLUMNS.index("grad_norm")]]
        bad = int(np.argmin((np.isfinite(measures[:, 0]) & ~np.isinf(measures[:, 1])).astype(int)))
        self.failed = float(measures[bad, 0]), float(measures[bad, 1])
        step = int(rows[bad, 0])
        self._rows = [rows[:bad]] if bad else []
        return step

    def flush(self) -> None:
        """Fetch the pending rows from the device."""
        if not self._pending:
            return
        measured = torch.stack([values for _, values in self._pending]).double().cpu().numpy()
        host_values = np.array([row for row, _ in self._pending])
        self._rows.append(np.hstack([host_values[:, :3], measured, host_values[:, 3:]]))
        self._pending = []

    def last(self, name: str) -> float:
        """Return the last row's value of a column."""
        self.flush()
        return float(self._rows[-1][-1, COLUMNS.index(name)]) if self._rows else math.nan

    def recent(self, name: str, rows: int) -> float:
        """Return a column's mean over the last rows."""
        return float(self.array()[-rows:, COLUMNS.index(name)].mean())

    def diverged(self, rows: int) -> str | None:
        """Return a warning where the last rows' mean loss is far above the first loss, else None."""
        losses = self.array()[:, COLUMNS.index("loss")]
        if not len(losses):
            return None
        first, last = float(losses[0]), float(losses[-rows:].mean())
        if not last - first > DIVERGED * max(1.0, abs(first)):
            return None
        return (
            f"the fit diverged: its loss was {first:.4g} nats per observation at first and is {last:.4g} at the end: "
            "lower the learning rate, or give clip_norm"
        )

    def array(self) -> np.ndarray:
        """Return all rows, ``[steps, columns]``."""
        self.flush()
        self._rows = [np.concatenate(self._rows)] if self._rows else []
        return self._rows[0] if self._rows else np.empty((0, len(self.columns)))

    def frame(self) -> pd.DataFrame:
        """Return all rows as a table."""
        table = pd.DataFrame(self.array().copy(), columns=self.columns)
        return table.astype({"step": int, "epoch": int})

    def go_on_from(self, rows: np.ndarray) -> None:
        """Continue from the rows ``[steps, columns]`` of an earlier fit."""
        self._rows, self._pending = [np.array(rows)] if len(rows) else [], []
