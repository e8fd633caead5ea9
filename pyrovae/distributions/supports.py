"""Supports for maps from the real line: by name or as they are, of vectors, and of a mixture's components."""

import copy
from typing import Any

from pyro.distributions import ExpandedDistribution
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution, biject_to, constraints
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint
from torch.distributions.transforms import AffineTransform, ComposeTransform, IndependentTransform, Transform

from pyrovae.programs.sites import support_of


def constraint(support: Any) -> Constraint:
    """Return a constraint of torch, given as itself or by its name.

    Raises:
        ValueError: when it is neither a constraint nor the name of one.
    """
    is_name = isinstance(support, str) and support in constraints.__all__
    candidate = getattr(constraints, support) if is_name else support
    if not isinstance(candidate, Constraint):
        raise ValueError(f"support must be a constraint of torch.distributions or the name of one, got {support!r}")
    return candidate


def of_vectors(support: Constraint) -> Constraint:
    """Return a support of numbers as a support of vectors of such numbers, with one density per vector.

    Raises:
        ValueError: when it is a support of matrices.
    """
    if support.event_dim > 1:
        raise ValueError(f"the latent is a vector, and {support} is a support of arrays of {support.event_dim} axes")
    return support if support.event_dim else constraints.independent(support, 1)


def of_components(support: Constraint) -> Constraint:
    """Return a support in which that of every mixture is replaced by the one that its components share.

    Raises:
        ValueError: when the components have different supports.
    """
    if isinstance(support, MixtureSameFamilyConstraint):
        return _shared(of_components(support.base_constraint), -1 - support.event_dim)
    if isinstance(support, constraints.independent):
        return constraints.independent(of_components(support.base_constraint), support.reinterpreted_batch_ndims)
    return support


def before_affine(fn: Any) -> Constraint | None:
    """Return the support of a distribution before shift and scale, for which torch always gives the real line.

    Where this is the real line, so is the support of the distribution itself. None where no support is declared.
    """
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    if not isinstance(fn, TransformedDistribution):
        return support_of(fn)
    for step in reversed(_flat(fn.transforms)):
        if not isinstance(step, AffineTransform):
            codomain: Constraint = step.codomain
            return codomain
    return before_affine(fn.base_dist)


def _flat(steps: Any) -> list[Transform]:
    """Return a flat list of transforms: one that is made of others is replaced by these."""
    parts: list[Transform] = []
    for step in steps:
        if isinstance(step, IndependentTransform):
            parts += _flat([step.base_transform])
        elif isinstance(step, ComposeTransform) and not isinstance(step, Onto):
            parts += _flat(step.parts)
        else:
            parts.append(step)
    return parts


class Onto(ComposeTransform):
    """A bijection that knows its range; torch's own bijections onto half-lines and intervals name the real line.

    Args:
        transform: the bijection.
        support: its range.
        cache_size: 1 to keep the last pair of values.
    """

    def __init__(self, transform: Transform, support: Constraint, cache_size: int = 0) -> None:
        super().__init__([transform], cache_size=cache_size)
        self.support = support

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def codomain(self) -> Constraint:
        """The support."""
        return self.support

    def with_cache(self, cache_size: int = 1) -> "Onto":
        """Return the same bijection with another cache."""
        return self if self._cache_size == cache_size else Onto(self.parts[0], self.support, cache_size)


def bijection(support: Constraint) -> Any:
    """Return a transform from the real line, or from real vectors, onto a support.

    Raises:
        NotImplementedError: where torch has none.
    """
    if isinstance(support, constraints.independent):
        return IndependentTransform(bijection(support.base_constraint), support.reinterpreted_batch_ndims)
    transform = biject_to(support)
    return transform if support.event_dim else Onto(transform, support)


def _shared(support: Any, dim: int) -> Constraint:
    """Return the support that all components share; they are dimension ``dim`` of its bounds."""
    if isinstance(support, constraints.independent):
        return constraints.independent(_shared(support.base_constraint, dim), support.reinterpreted_batch_ndims)
    shared: Constraint = copy.copy(support)
    for name, bound in vars(support).items():
        if isinstance(bound, Tensor) and bound.dim() >= -dim:
            first = bound.select(dim, 0)
            if not bool((bound == first.unsqueeze(dim)).all()):
                raise ValueError(f"the components of a mixture have different supports, {support}")
            setattr(shared, name, first)
    return shared
