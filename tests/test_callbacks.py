"""What is told of a fit, and what a callback may ask for."""

import pandas as pd
import pytest
import torch
from conftest import seeded

from pyrovae import fit, guides, models, nn
from pyrovae.training import FitError

QUIET = {"progress": False, "batch_size": 10}
X = torch.arange(150.0).reshape(30, 5).remainder(7)


def pair():
    return seeded(lambda: (models.LinearGaussian(2, 5), guides.MeanField(nn.MLP(5, 4, hidden=(4,)), 2)))


class Told:
    """Keeps all that it is told."""

    def __init__(self):
        self.steps, self.validations, self.saves, self.ends = [], [], [], []

    def on_step(self, step):
        self.steps.append((step.step, step.epoch, step.loss, step.bound, step.lr))

    def on_validation(self, validated):
        self.validations.append((validated.step, validated.epoch, validated.bound, validated.is_best))

    def on_checkpoint(self, saved):
        self.saves.append((saved.step, saved.folder))

    def on_end(self, fitted):
        self.ends.append(fitted)


@pytest.mark.parametrize("compile", [False, True])
def test_everything_is_told(tmp_path, compile):
    told = Told()
    options = {"validation_data": X[:10], "checkpoint": tmp_path, "checkpoint_seconds": 0, "compile": compile}
    fitted = fit(*pair(), X, epochs=3, callback=told, **options, **QUIET)
    columns = ["step", "epoch", "loss", "bound", "lr"]
    pd.testing.assert_frame_equal(pd.DataFrame(told.steps, columns=columns), fitted.history[columns], check_dtype=False)
    bounds = fitted.history["validation_bound"].dropna()
    assert [v[0] for v in told.validations] == [3, 6, 9]
    assert [v[2] for v in told.validations] == bounds.tolist()
    assert [v[3] for v in told.validations] == [b == m for b, m in zip(bounds, bounds.cummax(), strict=True)]
    assert told.saves[-1] == (9, tmp_path)
    assert [step for step, _ in told.saves][:3] == [1, 2, 3]
    assert told.ends == [fitted]


def test_a_callback_needs_one_of_the_methods_alone_and_there_may_be_several():
    class Steps:
        count = 0

        def on_step(self, step):
            self.count += 1

    one, other = Steps(), Told()
    plain = fit(*pair(), X, steps=4, **QUIET)
    fitted = fit(*pair(), X, steps=4, callback=[one, other], **QUIET)
    assert one.count == len(other.steps) == 4
    assert fitted.history.drop(columns="seconds").equals(plain.history.drop(columns="seconds"))


@pytest.mark.parametrize("event", ["on_step", "on_validation"])
def test_a_callback_may_stop_the_fit(event, tmp_path):
    class Stopper:
        def stop(self, happened):
            if happened.step >= 5:
                happened.stop("enough")

    stopper = Stopper()
    setattr(stopper, event, stopper.stop)
    fitted = fit(*pair(), X, epochs=9, callback=stopper, validation_data=X[:10], checkpoint=tmp_path, **QUIET)
    assert fitted.stopped == "enough"
    assert len(fitted.history) == 6
    again = fit(*pair(), X, epochs=9, validation_data=X[:10], checkpoint=tmp_path, resume=True, **QUIET)
    whole = fit(*pair(), X, epochs=9, validation_data=X[:10], **QUIET)
    assert again.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))


def test_the_end_is_told_of_a_fit_that_fails():
    told = Told()
    with pytest.raises(FitError):
        fit(*pair(), X, steps=9, lr=lambda step: 1e-3 if step < 3 else -1.0, callback=told, **QUIET)
    (fitted,) = told.ends
    assert fitted.stopped == "failed"
    assert len(fitted.history) == 3


@pytest.mark.parametrize("callback", [object(), 3, Told, [Told(), print]])
def test_what_is_no_callback_is_refused(callback):
    with pytest.raises(ValueError, match="callback must be an object with any of the methods on_step, on_validation"):
        fit(*pair(), X, steps=1, callback=callback, **QUIET)
