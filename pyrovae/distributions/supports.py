"""Supports as maps from the real line need them: of vectors, named or given, a mixture's that of its components."""

import copy
from typing import Any

from pyro.distributions import ExpandedDistribution
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution, biject_to, constraints
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint
from torch.distributions.transforms import AffineTransform, ComposeTransform, IndependentTransform, Transform

from pyrovae.programs.sites import support_of


def constraint(support: Any) -> Constraint:
    """Return a constraint of torch from itself or its name.

    Raises:
        ValueError: when it is neither.
    """
    named = isinstance(support, str) and support in constraints.__all__
    found = getattr(constraints, support) if named else support
    if not isinstance(found, Constraint):
        raise ValueError(f"support must be a constraint of torch.distributions or the name of one, got {support!r}")
    return found


def of_vectors(support: Constraint) -> Constraint:
    """Return a support of numbers as one of vectors of such numbers, whose densities are one for the vector.

    Raises:
        ValueError: when it is one of matrices.
    """
    if support.event_dim > 1:
        raise ValueError(f"the latent is a vector, and {support} is a support of arrays of {support.event_dim} axes")
    return support if support.event_dim else constraints.independent(support, 1)


def of_components(support: Constraint) -> Constraint:
    """Return a support with every mixture's replaced by that of its components, which all share it.

    Raises:
        ValueError: when the components have different supports.
    """
    if isinstance(support, MixtureSameFamilyConstraint):
        return _shared(of_components(support.base_constraint), -1 - support.event_dim)
    if isinstance(support, constraints.independent):
        return constraints.independent(of_components(support.base_constraint), support.reinterpreted_batch_ndims)
    return support


def before_affine(fn: Any) -> Constraint | None:
    """Return the support of a distribution before it is shifted and scaled, which to torch always gives the real line.

    Where this is the real line, so is the support of the distribution itself. None where nothing is said.
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
    """Return transforms with those that are made of others taken apart."""
    found: list[Transform] = []
    for step in steps:
        if isinstance(step, IndependentTransform):
            found += _flat([step.base_transform])
        elif isinstance(step, ComposeTransform) and not isinstance(step, Onto):
            found += _flat(step.parts)
        else:
            found.append(step)
    return found


class Onto(ComposeTransform):
    """A bijection that knows what it maps onto; torch's own to half-lines and intervals say the real line.

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
        """Return the same with another cache."""
        return self if self._cache_size == cache_size else Onto(self.parts[0], self.support, cache_size)


def bijection(support: Constraint) -> Any:
    """Return a transform from the real line, or from real vectors, onto a support.

    Raises:
        NotImplementedError: where torch knows none.
    """
    if isinstance(support, constraints.independent):
        return IndependentTransform(bijection(support.base_constraint), support.reinterpreted_batch_ndims)
    found = biject_to(support)
    return found if support.event_dim else Onto(found, support)


def _shared(support: Any, dim: int) -> Constraint:
    """Return the support of all components, which are a dimension of its bounds."""
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
