"""The models that options can name: how each is made of the parts, which data it takes, and what fits it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from torch import nn

from pyrovae import guides, models
from pyrovae.app.parts import Parts, made_by_options
from pyrovae.common.checks import at_least
from pyrovae.data import Data, Field, Splits, Table
from pyrovae.data.data import EXPOSURE
from pyrovae.objectives import SemiSupervisedELBO
from pyrovae.priors import ConditionalNormal, VampPrior
from pyrovae.programs.handlers import given
from pyrovae.programs.isolation import random_state
from pyrovae.training import Fit


class ModelMaker(ABC):
    """A model that options can name.

    Attributes:
        guided: what its guide is.
    """

    guided: ClassVar[str] = "any guide of one latent"

    def objective(self) -> ELBO:
        """Make what fits it unless another objective is named."""
        return Trace_ELBO()

    @abstractmethod
    def pair(self, parts: Parts) -> tuple[nn.Module, nn.Module]:
        """Make the model and its guide."""

    def given(self, data: Data) -> Data:
        """Return data as the model takes them.

        Raises:
            ValueError: for data that it cannot take; the message says what they lack.
        """
        further = [field.name for field in data.fields[1:] if field.name != EXPOSURE]
        if further:
            names = ", ".join(name or "another tensor" for name in further)
            raise ValueError(
                f"{type(self).__name__} takes the outcomes alone, and the data have {names} beside them: use "
                "--model ConditionalVAE, or give the columns another role"
            )
        return data

    def split(self, parts: Splits) -> Splits:
        """Return the parts of the data as the model takes them."""
        return Splits(*(self.given(part) for part in parts))


class VAE(ModelMaker):
    """A VAE: any prior, decoder and likelihood."""

    def pair(self, parts: Parts) -> tuple[nn.Module, nn.Module]:
        """Make the model and its guide."""
        prior = parts.p_z()
        model = models.VAE(prior=prior, decoder=parts.decoding(parts.latent_dim), likelihood=parts.p_x)
        guide = parts.guide(parts.encoding(), parts.latent_dim)
        if isinstance(prior, VampPrior):
            prior.attach(guide, parts.data)
        return model, guide


class ConditionalVAE(ModelMaker):
    """A VAE given covariates: a table's columns in the role of covariates, or else the labels.

    Args:
        learned_prior: whether the prior is a Gaussian that depends on the covariates (--prior is then left out).
    """

    def __init__(self, learned_prior: bool = False) -> None:
        self.learned_prior = learned_prior

    def given(self, data: Data) -> Data:
        """Return data with their covariates, or with their labels, one-hot, in their place."""
        if any(field.name != EXPOSURE for field in data.fields[1:]):
            return data
        if data.labels is None or bool((data.labels < 0).any()):
            raise ValueError(
                "ConditionalVAE takes covariates: give columns of a table that role (--data.roles "
                '\'{"age": "covariate"}\'), or data with a label for every observation'
            )
        one_hot = nn.functional.one_hot(data.labels, num_classes(data)).float()
        label = Field(one_hot, name="label", role="covariate")
        return data.with_fields(data.first, label, *data.fields[1:])

    def pair(self, parts: Parts) -> tuple[nn.Module, nn.Module]:
        """Make the model and its guide."""
        more = parts.data.batch(slice(0, 1))[1].shape[1]
        prior: Any = parts.p_z()
        if self.learned_prior:
            prior = ConditionalNormal(parts.hidden(more, 2 * parts.latent_dim))
        decoder = parts.decoding(parts.latent_dim, more)
        model = models.ConditionalVAE(prior=prior, decoder=decoder, likelihood=parts.p_x)
        return model, parts.guide(parts.encoding(more), parts.latent_dim)


class SemiSupervisedVAE(ModelMaker):
    """A class and a style: some labels are missing, and those of held-out data are not shown.

    Args:
        num_labelled: number of training observations whose label the model sees, the same of every class; null shows
            all.
        learn_probabilities: whether the probabilities of the classes are learned.
    """

    guided = "ClassConditional, around any guide of one latent"

    def __init__(self, num_labelled: int | None = None, learn_probabilities: bool = False) -> None:
        self.num_labelled = None if num_labelled is None else at_least("num_labelled", num_labelled, 1)
        self.learn_probabilities = learn_probabilities

    def objective(self) -> ELBO:
        """Make the bound that trains the classifier on the labels as well."""
        return SemiSupervisedELBO()

    def given(self, data: Data) -> Data:
        """Return data with their labels as a further tensor, all unknown."""
        if data.labels is None:
            raise ValueError("SemiSupervisedVAE takes labels: give a column of a table that role, or data with labels")
        if len(data.fields) > 1:
            raise ValueError("SemiSupervisedVAE takes outcomes and a label alone: give other columns another role")
        return data.labelled(torch.zeros(len(data), dtype=torch.bool))

    def split(self, parts: Splits) -> Splits:
        """Return the parts: labels are shown in training, as many as were asked for, and hidden elsewhere."""
        hidden = super().split(parts)
        assert parts.train.labels is not None
        return hidden._replace(train=parts.train.labelled(_known(parts.train.labels, self.num_labelled)))

    def pair(self, parts: Parts) -> tuple[nn.Module, nn.Module]:
        """Make the model and its guide."""
        classes = num_classes(parts.data)
        model = models.SemiSupervisedVAE(
            prior=parts.p_z(), decoder=parts.decoding(parts.latent_dim, classes), likelihood=parts.p_x,
            num_classes=classes, learn_probabilities=self.learn_probabilities,
        )  # fmt: skip
        latent = parts.guide(parts.encoding(classes), parts.latent_dim)
        return model, guides.ClassConditional(parts.encoding(), latent, classes)


class GaussianMixtureVAE(ModelMaker):
    """Clusters: the latents come from a mixture of Gaussians.

    Args:
        num_clusters: number of clusters.
    """

    guided = "Clustered, around any guide of one latent"

    def __init__(self, num_clusters: int = 10) -> None:
        self.num_clusters = num_clusters

    def objective(self) -> ELBO:
        """Make the bound that sums the clusters out."""
        return TraceEnum_ELBO(max_plate_nesting=1)

    def pair(self, parts: Parts) -> tuple[nn.Module, nn.Module]:
        """Make the model and its guide."""
        model = models.GaussianMixtureVAE(
            num_clusters=self.num_clusters, latent_dim=parts.latent_dim, decoder=parts.decoding(parts.latent_dim),
            likelihood=parts.p_x,
        )  # fmt: skip
        return model, guides.Clustered(parts.guide(parts.encoding(), parts.latent_dim), model)


class HierarchicalVAE(ModelMaker):
    """Several latent layers, one on top of the other; --latent_dim is the size of the lowest.

    Args:
        upper_dims: sizes of the layers above, from the second.
        top_down: whether the guide is a Ladder (top-down) instead of Hierarchical (bottom-up); --guide is then left
            out.
        skip: whether each layer and the data depend on all layers above.
    """

    guided = "Hierarchical, of any guides of one latent, or Ladder"

    def __init__(self, upper_dims: tuple[int, ...] = (4,), top_down: bool = False, skip: bool = False) -> None:
        self.upper_dims = tuple(at_least("each of upper_dims", size, 1) for size in upper_dims)
        self.top_down, self.skip = top_down, skip
        if not self.upper_dims:
            raise ValueError("upper_dims is empty: a HierarchicalVAE has a second layer at least")

    def pair(self, parts: Parts) -> tuple[nn.Module, nn.Module]:
        """Make the model and its guide."""
        dims = (parts.latent_dim, *self.upper_dims)
        above = [sum(dims[i + 1 :]) if self.skip else dims[i + 1] for i in range(len(dims) - 1)]
        transitions = [parts.hidden(above[i], 2 * dims[i]) for i in reversed(range(len(above)))]
        decoder = parts.decoding(sum(dims) if self.skip else dims[0])
        model = models.HierarchicalVAE(
            prior=parts.p_z(dims[-1]), transitions=transitions, decoder=decoder, likelihood=parts.p_x, skip=self.skip
        )
        if self.top_down:
            upper = [parts.hidden(parts.features, parts.features) for _ in self.upper_dims]
            return model, guides.Ladder([parts.encoding(), *upper], model)
        inputs = [parts.encoding(), *(parts.hidden(below, parts.features) for below in dims[:-1])]
        layers = [parts.guide(network, dim) for network, dim in zip(inputs, dims, strict=True)]
        return model, guides.Hierarchical(layers)


class BayesianVAE(ModelMaker):
    """A VAE whose decoder's weights are latent; held-out data are evaluated at the weights' medians.

    Args:
        weight_scale: scale of the weights' prior.
    """

    guided = "WithGlobals, around any guide of one latent"

    def __init__(self, weight_scale: float = 1.0) -> None:
        self.weight_scale = weight_scale

    def pair(self, parts: Parts) -> tuple[nn.Module, nn.Module]:
        """Make the model and its guide."""
        model = models.BayesianVAE(
            prior=parts.p_z(), decoder=parts.decoding(parts.latent_dim), likelihood=parts.p_x,
            num_data=len(parts.data), weight_scale=self.weight_scale,
        )  # fmt: skip
        local = parts.guide(parts.encoding(), parts.latent_dim)
        return model, guides.WithGlobals.of(local, model, *parts.data.batch(slice(0, 2)))


class LinearGaussian(ModelMaker):
    """Probabilistic principal components or factor analysis; --prior, --likelihood and --decoder are left out.

    Args:
        isotropic: whether all columns share one noise scale.
    """

    def __init__(self, isotropic: bool = False) -> None:
        self.isotropic = isotropic

    def pair(self, parts: Parts) -> tuple[nn.Module, nn.Module]:
        """Make the model and its guide."""
        columns = parts.data.columns if isinstance(parts.data, Table) else ()
        other = [c.name for c in columns if c.role == "outcome" and c.type not in ("continuous", "positive")]
        if other or parts.data.missing:
            what = f"{', '.join(other)} are none" if other else "cells are missing"
            raise ValueError(f"LinearGaussian takes complete continuous columns, and {what}: use VAE, or drop them")
        size = parts.data.tensors[0][0].numel()
        model = models.LinearGaussian(parts.latent_dim, size, isotropic=self.isotropic)
        return model, parts.guide(parts.encoding(), parts.latent_dim)


MODELS = (VAE, ConditionalVAE, SemiSupervisedVAE, GaussianMixtureVAE, HierarchicalVAE, BayesianVAE, LinearGaussian)
ModelOption = Callable[[], ModelMaker]


def make_pair(maker: ModelMaker, parts: Parts, seed: int) -> tuple[nn.Module, nn.Module]:
    """Make a model and its guide; equal seeds give equal initial parameters."""
    with random_state("initial values", seed), made_by_options():
        return maker.pair(parts)


def per_observation(fitted: Fit) -> tuple[Any, Any]:
    """Return a fit's programs for questions per observation: latents shared by all data are at their medians."""
    if isinstance(fitted.guide, guides.WithGlobals):
        return given(fitted.model, fitted.guide.median()), fitted.guide.local
    return fitted.model, fitted.guide


def num_classes(data: Data) -> int:
    """Return the number of classes of the labels."""
    if data.label_names is not None:
        return len(data.label_names)
    assert data.labels is not None
    return int(data.labels.max()) + 1


def _known(labels: torch.Tensor, count: int | None) -> torch.Tensor | None:
    """Return which labels are shown: the first ones of every class, as many of each; None shows all."""
    if count is None:
        return None
    classes = [k for k in labels.unique().tolist() if k >= 0]
    known = torch.zeros(len(labels), dtype=torch.bool)
    for place, k in enumerate(classes):
        own = count // len(classes) + (place < count % len(classes))
        known[(labels.cpu() == k).nonzero()[:own, 0]] = True
    return known
