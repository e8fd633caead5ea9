"""What might the right half of a digit be, given its left half? Structured prediction on handwritten digits.

    z ~ N(loc(c), diag(scale(c)^2)),    x ~ Bernoulli(decoder(z, c)),    c the left half, x the right half

The baseline predicts every pixel by itself, x_d ~ Bernoulli(network_d(c)): it cannot say that pixels go together.

Reference: Sohn, Lee and Yan, "Learning structured output representation using deep conditional generative models",
2015.
"""

import argparse

import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

import pyrovae
from pyrovae import guides, likelihoods, models, nn, priors

LATENT = 8


def halves(part):
    (x,) = part.batch(slice(None))
    pictures = x.reshape(-1, 8, 8)
    return pictures[:, :, 4:].flatten(1), pictures[:, :, :4].flatten(1)


def pixelwise(train, validation, epochs):
    """The baseline, stopped where it is best on the validation set."""
    network = nn.MLP(32, 32)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    best = (float("inf"), {})
    for _ in range(epochs):
        for rows in torch.randperm(len(train[0])).split(128):
            optimizer.zero_grad()
            cross_entropy(network(train[1][rows]), train[0][rows]).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(cross_entropy(network(validation[1]), validation[0]))
        if loss < best[0]:
            best = loss, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(best[1])
    return network


def main(epochs=300, num_particles=1000):
    splits = pyrovae.data.Digits(binarise=pyrovae.data.Static()).splits(seed=0)
    train, validation, test = (halves(part) for part in splits)
    torch.manual_seed(0)
    model = models.ConditionalVAE(
        prior=priors.ConditionalNormal(nn.MLP(32, 2 * LATENT, hidden=(64,))),
        decoder=nn.MLP(LATENT + 32, 32),
        likelihood=likelihoods.Bernoulli(),
    )
    guide = guides.MeanField(nn.MLP(32 + 32, 64), LATENT)
    pyrovae.fit(model, guide, train, epochs=epochs, validation_data=validation, patience=50, progress=False)
    result = pyrovae.evaluate(model, guide, test, num_particles=num_particles, progress=False)
    network = pixelwise(train, validation, epochs)
    with torch.no_grad():
        baseline = -cross_entropy(network(test[1]), test[0], reduction="none").sum(1)
    gain = result.log_evidence - baseline
    error = float(gain.std()) / len(gain) ** 0.5
    print(f"log p(right | left): {float(result.log_evidence.mean()):.2f} nats, {float(baseline.mean()):.2f} by pixel")
    print(f"gain {float(gain.mean()):.2f} nats per digit (paired standard error {error:.2f})")
    return float(gain.mean()), error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300)
    main(parser.parse_args().epochs)
