"""What do I know about the data before I see them? Hyperparameters of a prior from quantiles, counts and probabilities.

A clinic plans for patients with a frailty z1 and a cost level z2 each:

    z1 ~ N(m1, s1),  z2 ~ N(m2, s2),    visits ~ Poisson(exp(z1)),    cost = exp(z2) per visit, log-normal noise

The clinic knows nothing of m and s, but has seen years: half of all patients come at most 4 times, one in ten more than
11 times; a visit costs 60 to 250 in the middle nine tenths of cases; a patient costs more than 2,000 once in fifty
times. The last is more than four hyperparameters can meet at will: the table says whether they do. (Of counts "at most"
is a probability: a quantile of a count stands for the middle of a step.)

Reference: Hartmann, Agiashvili, Buerkner and Klami, "Flexible prior elicitation via the prior predictive distribution",
2020.
"""

import argparse

import pyro
import pyro.distributions as dist
import torch

import pyrovae
from pyrovae import Probability, Quantiles, priors


class Clinic(torch.nn.Module):
    """The generative program; nothing in it but the prior has parameters."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, visits, cost):
        with pyro.plate("patients", len(visits)):
            z = pyro.sample("z", self.prior())
            number = pyro.sample("visits", dist.Poisson(z[:, :1].clamp(max=10.0).exp()).to_event(1), obs=visits)
            loc = z[:, 1:] + number.clamp(min=1.0).log()
            pyro.sample("cost", dist.LogNormal(loc, 0.1).to_event(1), obs=cost)


STATED = [
    Probability("at most 4 visits", lambda v: v["visits"][:, 0] <= 4, 0.5),
    Probability("more than 11 visits", lambda v: v["visits"][:, 0] > 11, 0.1),
    Quantiles("cost per visit", lambda v: v["z"][:, 1].exp(), {0.05: 60.0, 0.95: 250.0}),
    Probability("a patient costs more than 2,000", lambda v: v["cost"][:, 0] > 2000, 0.02),
]


def main(steps=40, num_draws=4000):
    prior = priors.Parametric(2, "Normal", {"loc": [0.0, 4.0], "scale": [1.0, 1.0]})
    found = pyrovae.elicit(Clinic(prior), STATED, steps=steps, num_draws=num_draws, progress=False)
    print(found.table().round(3).to_string())
    print(found)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", help="file for the figure of what was stated and what came out")
    arguments = parser.parse_args()
    result = main()
    if arguments.figure:
        result.plot().savefig(arguments.figure)
