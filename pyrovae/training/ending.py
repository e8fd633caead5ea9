"""How a fit ended: whether its validation bound was still rising."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

FEWEST = 8  # validated epochs that a trend is told from
WINDOW = 4  # the trend is that of the last quarter of the fit
LEAST_GAIN = 1e-3  # of the bound's size, below which a gain does not count
SMALL, SMALL_SHARE = 0.1, 5e-3  # nats per observation, and share of the bound: changes that hardly matter
LEVEL = 0.975  # a flat bound is said to rise with a probability of about 1 - LEVEL
FEW_STEPS = 200  # until the best bound of a fit that patience ended, below which it may have been too early
MOST_CORRELATED = 0.9  # largest correlation of successive epochs that is allowed for


@dataclass(frozen=True)
class Ending:
    """How a fit ended.

    Attributes:
        status: "converged" (the bound changes by little, and that is known), "still improving" or "falling" (ever
            better on the training data, worse on others), or "undecided" between these, by the validation bound's trend
            over the last quarter of the epochs; "patience" (no better bound
            for so many epochs; the best state was kept); "limit of steps" where there are too few validated epochs to
            tell; or "diverged", "failed", a signal, or a callback's reason.
        gain: rise of the validation bound over the last quarter, in nats per observation, by a straight line.
        gain_se: its standard error, which allows for the correlation of successive epochs.
        epochs: number of epochs of that quarter.
        best_epoch: number of epochs after which the validation bound was highest; 0 without validation data.
        best_step: number of steps until then.
    """

    status: str
    gain: float = math.nan
    gain_se: float = math.nan
    epochs: int = 0
    best_epoch: int = 0
    best_step: int = 0

    def __str__(self) -> str:
        best = f", best after epoch {self.best_epoch}" if self.best_epoch else ""
        if self.status == "patience" and self.best_step < FEW_STEPS:
            best += f", which is step {self.best_step}: so early a bound may fall before it rises: give more patience"
        if not self.epochs:
            return f"{self.status}{best}"
        return f"{self.status}: {self.gain:+.3g} (se {self.gain_se:.2g}) nats in the last {self.epochs} epochs{best}"


def ending(history: pd.DataFrame, stopped: str) -> Ending:
    """Return how a fit with this history ended.

    A fit that used up its steps is "still improving" where its validation bound rose clearly over the last quarter of
    the epochs, by Student's t at 97.5%, and by more than a thousandth of the bound, or where its last value is its best
    and two standard errors leave a gain of more than a tenth of a nat, or half a per cent of the bound if that is
    larger; "falling" where it fell as clearly as by the first of these;
    "converged" where two standard errors either way exclude a change of more than a tenth of a nat, or half a per cent
    of the bound if that is larger; and otherwise "undecided". The standard error of
    the line's slope is inflated by the residuals' correlation r between successive epochs, by sqrt((1 + r) / (1 - r)),
    and the degrees of freedom are those of as many independent epochs. r is corrected for its bias after a line is
    fitted, about -(2 + 4 r) / n.

    Source: Kendall, "Note on bias in the estimation of autocorrelation", 1954, for the bias.
    """
    from scipy import stats  # it takes a second

    validated = history.dropna(subset=["validation_bound"])
    bounds = validated["validation_bound"].to_numpy(float)
    best = int(bounds.argmax()) + 1 if len(bounds) else 0
    step = int(validated["step"].iloc[best - 1]) + 1 if best else 0
    if stopped != "finished":
        return Ending(stopped, best_epoch=best, best_step=step)
    if len(bounds) < FEWEST:
        return Ending("limit of steps", best_epoch=best, best_step=step)
    last = bounds[-max(FEWEST // 2, len(bounds) // WINDOW) :]
    epochs = np.arange(len(last)) - (len(last) - 1) / 2
    slope = float((epochs * last).sum() / (epochs**2).sum())
    residuals = last - last.mean() - slope * epochs
    square, count = float((residuals**2).sum()), len(last)
    lagged = float((residuals[1:] * residuals[:-1]).sum()) / square if square > 0 else 0.0
    r = min(MOST_CORRELATED, max(0.0, (count * lagged + 2) / max(1, count - 4)))
    span, own = count - 1, (1 - r) / (1 + r)
    gain, se = slope * span, math.sqrt(square / max(1, count - 2) / float((epochs**2).sum()) / own) * span
    limit = float(stats.t.ppf(LEVEL, max(1.0, count * own - 2))) * se
    clear = abs(gain) > limit and abs(gain) > LEAST_GAIN * max(1.0, abs(float(last.mean())))
    small = max(SMALL, SMALL_SHARE * abs(float(last.mean())))
    clear = clear or (best == len(bounds) and gain - 2 * se > small)
    flat = "converged" if abs(gain) + 2 * se <= small else "undecided"
    status = ("still improving" if gain > 0 else "falling") if clear else flat
    return Ending(status, gain, se, len(last), best, step)
