"""The semi-supervised bound, with a classifier that learns from the labels too."""

from typing import Any

import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pyrovae.common.checks import finite
from pyrovae.programs.types import Program


class SemiSupervisedELBO(TraceEnum_ELBO):
    """sum_i ELBO_i + weight * sum_{i labelled} log q(y = label_i | x_i), classes summed out.

    Under the bound alone the classifier q(y | x) learns nothing from the labels, because y is given where there is a
    label. ``loss`` is minus this surrogate; what :func:`pyrovae.fit` records as the bound is the first sum.

    Source: Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep generative models", 2014,
    equation 9.

    Args:
        classification_weight: weight of the classification of the labelled observations; the paper's alpha is 0.1 times
            the number of observations, divided by the number of labelled ones.
    """

    def __init__(self, classification_weight: float = 1.0) -> None:
        super().__init__(max_plate_nesting=1)
        self.classification_weight = finite("classification_weight", classification_weight)
        if self.classification_weight < 0:
            raise ValueError(f"classification_weight must be at least 0, got {classification_weight!r}")
        self.beyond_bound: Tensor | None = None  # what the last loss holds beside the bound

    def differentiable_loss(self, model: Program, guide: Program, *batch: Tensor) -> Tensor:
        """Return the loss, summed over the batch; its gradient fits the pair."""
        beyond = self._beyond(guide, batch)
        bound: Tensor = super().differentiable_loss(model, guide, *batch)
        return bound + beyond

    def _beyond(self, guide: Program, batch: tuple[Tensor, ...]) -> Tensor:
        log_labels: Any = getattr(guide, "log_labels", None)
        if log_labels is None or len(batch) != 2:
            raise ValueError(
                "SemiSupervisedELBO needs data (x, labels) and a guide with log_labels(x, labels), such as "
                f"guides.ClassConditional, got {len(batch)} tensors and a {type(guide).__name__}"
            )
        beyond: Tensor = -self.classification_weight * log_labels(*batch).sum()
        self.beyond_bound = beyond.detach()
        return beyond

    def loss(self, model: Program, guide: Program, *batch: Tensor) -> float:
        """Return the loss as a number."""
        with torch.no_grad():
            return float(super().loss(model, guide, *batch) + self._beyond(guide, batch))

    def loss_and_grads(self, model: Program, guide: Program, *batch: Tensor) -> float:
        """Return the loss and leave its gradient with the parameters."""
        loss = self.differentiable_loss(model, guide, *batch)
        loss.backward()
        return float(loss.detach())
