"""Supports as maps from the real line need them: of vectors, named or given, a mixture's that of its components."""

import copy
from typing import Any

from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint


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
