"""Recognition programs q(z | x): one explicit Pyro program per file."""

from pyrovae.guides.auxiliary import Auxiliary
from pyrovae.guides.categorical import Categorical
from pyrovae.guides.class_conditional import ClassConditional
from pyrovae.guides.clustered import Clustered
from pyrovae.guides.dais import DAIS
from pyrovae.guides.exact import Exact
from pyrovae.guides.flow import Flow
from pyrovae.guides.full_rank import FullRank
from pyrovae.guides.guide import Guide
from pyrovae.guides.hierarchical import Hierarchical
from pyrovae.guides.householder import Householder
from pyrovae.guides.ladder import Ladder
from pyrovae.guides.local import Local
from pyrovae.guides.low_rank import LowRank
from pyrovae.guides.masked_autoregressive import MaskedAutoregressive
from pyrovae.guides.mean_field import MeanField
from pyrovae.guides.mixture import Mixture
from pyrovae.guides.planar import Planar
from pyrovae.guides.radial import Radial
from pyrovae.guides.semi_amortized import SemiAmortized
from pyrovae.guides.spherical import Spherical
from pyrovae.guides.spline import SplineAutoregressive, SplineCoupling
from pyrovae.guides.with_globals import WithGlobals
from pyrovae.guides.with_missing import WithMissing

__all__ = [
    "DAIS",
    "Auxiliary",
    "Categorical",
    "ClassConditional",
    "Clustered",
    "Exact",
    "Flow",
    "FullRank",
    "Guide",
    "Hierarchical",
    "Householder",
    "Ladder",
    "Local",
    "LowRank",
    "MaskedAutoregressive",
    "MeanField",
    "Mixture",
    "Planar",
    "Radial",
    "SemiAmortized",
    "Spherical",
    "SplineAutoregressive",
    "SplineCoupling",
    "WithGlobals",
    "WithMissing",
]
