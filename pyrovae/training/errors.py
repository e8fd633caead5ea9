"""The exceptions of a fit that cannot continue."""

from pyrovae.training.result import Fit


class FitError(RuntimeError):
    """A fit that had to stop: a loss that is not finite, or a program that fails on a batch.

    Attributes:
        fit: the fit up to its last good state, or None.
        step: number of the step at which it stopped, from 0.
        site: the site with the first density that is not finite, or None.
        indices: indices of the batch's observations; those with a density that is not finite come first.
    """

    def __init__(self, message: str, *, step: int, site: str | None, indices: list[int]) -> None:
        super().__init__(message)
        self.fit: Fit | None = None
        self.step, self.site, self.indices = step, site, indices


class FitInterrupted(KeyboardInterrupt):
    """A fit that SIGINT, SIGTERM or SIGHUP stopped, after it ended its step and wrote its checkpoint.

    Attributes:
        fit: the fit so far.
        signum: the signal's number.
    """

    def __init__(self, message: str, fit: Fit, signum: int) -> None:
        super().__init__(message)
        self.fit, self.signum = fit, signum
