"""Objectives: every one is a ``pyro.infer.ELBO``, usable in ``pyro.infer.SVI`` and in :func:`pyrovae.fit` alike.

These are Pyro's own, by their own names: a sampled KL, a KL in closed form where there is one, and discrete latents
summed out.
"""

from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

__all__ = ["TraceEnum_ELBO", "TraceMeanField_ELBO", "Trace_ELBO"]
