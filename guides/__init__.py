"""Recognition programs q(z | x): one explicit Pyro program a file."""

from pyrovae.guides.exact import Exact
from pyrovae.guides.flow import Flow
from pyrovae.guides.full_rank import FullRank
from pyrovae.guides.guide import Guide
from pyrovae.guides.mean_field import MeanField

__all__ = ["Exact", "Flow", "FullRank", "Guide", "MeanField"]
