"""Guide of a class and a latent: q(y | x) q(z | x, y)."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least, site_name
from pyrovae.guides.categorical import OneHot
from pyrovae.guides.guide import Guide, check_guide
from pyrovae.nn import Network
from pyrovae.nn.network import check_columns, num_features


class ClassConditional(nn.Module):
    """q(y, z | x) = q(y | x) q(z | x, y), with a classifier for y and any guide of one latent for z.

    Where a label is known, y is that label. y is marked to be summed out: ``TraceEnum_ELBO`` does so, other objectives
    sample it.

    Source: Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep generative models", 2014.

    Args:
        classifier: network from x to features ``[N, classifier.out_features]``, from which the logits come.
        latent: guide of z whose encoder takes x and y (one-hot): ``guides.MeanField(nn.MLP(64 + 10, 32), 8)``.
        num_classes: number of classes.
        name: name of the latent site of the class.

    Example:
        >>> from pyrovae import guides, nn
        >>> q = ClassConditional(nn.MLP(64, 32), guides.MeanField(nn.MLP(64 + 10, 32), 8), 10)
        >>> q.probabilities(torch.zeros(5, 64)).shape
        torch.Size([5, 10])
    """

    KNOWN = 200.0  # lead of a known class's logit: the others have probability zero and a finite logarithm

    def __init__(self, classifier: Network | nn.Module, latent: Guide, num_classes: int, *, name: str = "y") -> None:
        super().__init__()
        width = num_features("classifier", classifier)
        check_guide("latent", latent)
        self.num_classes = at_least("num_classes", num_classes, 2)
        columns = getattr(classifier, "in_features", None)
        if isinstance(columns, int):
            source = f"the {columns} of the classifier and one for each of num_classes"
            check_columns("the encoder of latent", latent.encoder, columns + self.num_classes, source)
        self.classifier, self.latent, self.name = classifier, latent, site_name("name", name)
        self.head = nn.Linear(width, self.num_classes)

    def logits(self, x: Tensor) -> Tensor:
        """Return the classifier's logits, ``[N, C]``."""
        logits: Tensor = self.head(self.classifier(x))
        return logits

    def probabilities(self, x: Tensor) -> Tensor:
        """Return q(y | x) of every class, ``[N, C]``."""
        with torch.no_grad():
            return self.logits(x).softmax(-1)

    def log_labels(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return log q(y = label | x) where there is a label, and 0 elsewhere, ``[N]``."""
        log_q = self.logits(x).log_softmax(-1).gather(-1, labels.long().clamp(min=0)[:, None])[:, 0]
        return torch.where(labels >= 0, log_q, torch.zeros_like(log_q))

    def _labelled_logits(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        """Return the logits; those of labelled observations are replaced by certain ones."""
        if labels is None:
            return logits
        classes = torch.arange(self.num_classes, device=labels.device)
        certain = self.KNOWN * ((labels[:, None] == classes).to(logits.dtype) - 1)
        return torch.where((labels >= 0)[:, None], certain, logits)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Sample y and z of every observation of ``x``, ``[N, D]``; return y, one-hot, ``[N, C]``."""
        pyro.module("guide", self)
        with pyro.plate("data", x.shape[0]):
            classes = OneHot(logits=self._labelled_logits(self.logits(x), labels))
            y: Tensor = pyro.sample(self.name, classes, infer={"enumerate": "parallel"})
            pyro.sample(self.latent.latent, self._latent(x, y))
        return y

    def _latent(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        return self.latent.posterior(x, y)
