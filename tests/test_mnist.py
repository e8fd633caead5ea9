"""On the real files, where PYROVAE_DATA names a folder that holds them."""

import importlib.util
import os

import pytest
import torch

import pyrovae
from pyrovae import guides, likelihoods, models, nn, priors
from pyrovae.data import MNIST, Dynamic

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("PYROVAE_DATA" not in os.environ, reason="PYROVAE_DATA names no folder with MNIST/raw"),
]


def test_a_vae_of_mnist():
    train, validation, test = MNIST(binarise=Dynamic()).splits()
    assert [len(part) for part in (train, validation, test)] == [50_000, 10_000, 10_000]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.VAE(
            prior=priors.StandardNormal(20), decoder=nn.MLP(20, 784, hidden=(400,)), likelihood=likelihoods.Bernoulli()
        )
        guide = guides.MeanField(nn.MLP(784, 400, hidden=()), 20)
    fitted = pyrovae.fit(model, guide, train, epochs=5, validation_data=validation, progress=False)
    assert fitted.history["validation_bound"].dropna().is_monotonic_increasing
    part = test.subset(slice(0, 1000))
    result = pyrovae.evaluate(model, guide, part, num_particles=500, progress=False)
    assert result.summary()["elbo"] > -135
    assert (result.log_evidence >= result.elbo).all()  # Jensen
    again = pyrovae.evaluate(model, guide, part, num_particles=500, seed=1, progress=False)
    trusted = result.reliable & again.reliable
    error = (result.log_evidence_se.square() + again.log_evidence_se.square()).sqrt()
    deviation = ((result.log_evidence - again.log_evidence) / error)[trusted]
    assert float(deviation.square().mean().sqrt()) < 1.5  # 1 if the standard errors are right
    if importlib.util.find_spec("constriction"):
        content = pyrovae.compress(model, guide, part, progress=False)  # decompressed and compared inside
        assert content.nats < -1.02 * result.summary()["elbo"]
        assert torch.equal(pyrovae.decompress(model, guide, content, progress=False), part.fixed().tensors[0])
