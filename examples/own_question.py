"""A question of one's own: is each held-out picture likelier under its own reconstruction than under any other's?

One file: run as a script it asks two fits; named to the command line it appears in the comparison, on the page and in
the list: ``pyrovae list --allow_module examples.own_question``.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from pyrovae import Diagnostic, Fitted, compare, data, fit, guides, likelihoods, models, nn, priors, register, to_arviz


@register
class Recognition(Diagnostic):
    """Share of the data that are likeliest under their own reconstruction."""

    name, title, option, default = "recognition", "Recognition", "recognition_of", 200
    help = (
        "number of test data, taken at random, that are to be recognised by their reconstructions; 0 leaves that out."
    )
    text = "Share of the test data that are likelier under their own posterior predictive mean than under any other's."

    def ask(self, fitted: Fitted) -> Tensor:
        some = fitted.some
        groups = ("posterior_predictive",)
        drawn = to_arviz(*fitted.pair, some, num_draws=100, num_particles=20, groups=groups, **fitted.options)
        means = torch.from_numpy(drawn.posterior_predictive["x"].mean(("chain", "draw")).to_numpy()).clamp(0.01, 0.99)
        x = torch.from_numpy(drawn.observed_data["x"].to_numpy()).to(means)
        likelihood = x @ means.log().T + (1 - x) @ (1 - means).log().T  # of every picture under every reconstruction
        return (likelihood.argmax(1) == torch.arange(len(x))).double()

    def columns(self, answers: Sequence[Tensor]) -> dict[str, float]:
        return {"recognised": float(torch.stack(list(answers)).mean())}

    def table(self, answers: Mapping[str, Tensor]) -> pd.DataFrame:
        rows = {name: {"num_data": len(a), "recognised": float(a.mean())} for name, a in answers.items()}
        return pd.DataFrame.from_dict(rows, orient="index")


def main(epochs: int = 100) -> pd.DataFrame:
    """Fit two numbers of latents to scikit-learn's digits, and ask."""
    splits = data.Digits(binarise=data.Static()).splits()
    fits = {}
    for size in (2, 8):
        likelihood = likelihoods.Bernoulli()
        model = models.VAE(prior=priors.StandardNormal(size), decoder=nn.MLP(size, 64), likelihood=likelihood)
        guide = guides.MeanField(nn.MLP(64, 64), size)
        fits[f"{size} latents"] = fit(model, guide, splits.train, epochs=epochs, lr=5e-3, progress=False)
    table = compare(fits, splits.test, num_particles=200, ask="recognition", progress=False)
    print(table[["log_evidence", "recognised"]].round(3).to_string())
    return table


if __name__ == "__main__":
    main()
