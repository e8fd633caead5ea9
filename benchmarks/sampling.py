"""Posteriors of many data at once beside Pyro's NUTS, observation by observation: ``python benchmarks/sampling.py``.

A VAE of 64-64-8 is fitted to handwritten digits; the same posteriors p(z | x) are sampled by :func:`pyrovae.hmc` (1,000
data, 16 chains each, one run), by :func:`pyrovae.ais`, and by ``pyro.infer.NUTS`` on one observation after the other.
What is compared is seconds per effective draw of an observation: for chains the smallest bulk effective sample size
over the latents, for annealing the effective number of weighted chains. Writes ``docs/sampling.md``.
"""

import argparse
import time
import warnings
from pathlib import Path

import arviz as az
import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS

import pyrovae
from pyrovae import guides, likelihoods, models, nn, priors


def fitted(epochs):
    torch.manual_seed(0)
    splits = pyrovae.data.Digits(binarise=pyrovae.data.Static()).splits(seed=0)
    model = models.VAE(prior=priors.StandardNormal(8), decoder=nn.MLP(8, 64), likelihood=likelihoods.Bernoulli())
    guide = guides.MeanField(nn.MLP(64, 64), 8)
    pyrovae.fit(model, guide, splits.train, epochs=epochs, progress=False)
    return model.requires_grad_(False), guide.requires_grad_(False), splits.train


def nuts(model, x, count, warmup, draws, jit):
    """Seconds per effective draw, mean over ``count`` data."""
    found = []
    for i in range(count):
        started = time.perf_counter()
        kernel = NUTS(model, jit_compile=jit, ignore_jit_warnings=True)
        chain = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
        with pyro.get_param_store().scope():
            chain.run(x[i : i + 1])
        seconds = time.perf_counter() - started
        z = chain.get_samples(group_by_chain=True)["z"].numpy()[:, :, 0]
        ess = min(float(az.ess(z[:, :, d])) for d in range(z.shape[2]))
        found.append(seconds / ess)
    return float(np.mean(found)), float(np.std(found) / np.sqrt(count))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--data", type=int, default=1000)
    parser.add_argument("--nuts", type=int, default=5, help="data that NUTS is run on")
    parser.add_argument("--draws", type=int, default=200)
    return parser.parse_args()


def page(rows: list[tuple[str, float, float, float]], count: int, draws: int, worst: float, ess: np.ndarray) -> str:
    base = rows[0][2]
    return "\n".join([
        f"Posteriors of a VAE of 64-64-8 on handwritten digits: {count:,} data by 16 chains by {draws} draws",
        f"after as many of warm-up, and annealing over {draws} temperatures. One run,",
        f"{torch.get_num_threads()} CPU threads. Made by `python benchmarks/sampling.py`. Largest R-hat of `hmc`",
        f"{worst:.3f}, median bulk effective sample size of an observation {np.median(ess):,.0f} (its worst latent).",
        "",
        "| sampler | seconds | ms per effective draw of an observation | beside `hmc` |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {seconds:.1f} | {1000 * each:.3g}{f' (se {1000 * error:.2g})' if error else ''} | "
            f"{each / base:.3g} times |"
            for name, seconds, each, error in rows
        ),
        "",
    ])  # fmt: skip


def main() -> None:
    options = arguments()
    warnings.simplefilter("ignore")
    model, guide, train = fitted(options.epochs)
    x = train.batch(slice(0, options.data))[0]
    run = {"num_chains": 16, "batch_size": options.data, "progress": False}

    started = time.perf_counter()
    chains = pyrovae.hmc(model, guide, x, num_warmup=options.draws, num_draws=options.draws, max_bytes=2**34, **run)
    seconds = time.perf_counter() - started
    ess = chains.sample_stats["ess_bulk"].to_numpy()
    rows = [("pyrovae.hmc, all at once, ArviZ's diagnostics included", seconds, (seconds / len(x) / ess).mean(), 0.0)]
    worst = float(chains.sample_stats["rhat"].max())

    started = time.perf_counter()
    annealed = pyrovae.ais(model, x, guide=guide, num_temperatures=options.draws, **run)
    seconds = time.perf_counter() - started
    weights = annealed.log_weights.softmax(0)
    effective = (1 / weights.square().sum(0)).numpy()
    rows.append(("pyrovae.ais, all at once", seconds, (seconds / len(x) / effective).mean(), 0.0))

    for jit in (False, True):
        started = time.perf_counter()
        mean, error = nuts(model, x, options.nuts, options.draws, options.draws, jit)
        label = f"Pyro's NUTS{', jit_compile=True' if jit else ''}, {options.nuts} data one by one"
        rows.append((label, time.perf_counter() - started, mean, error))
    text = page(rows, len(x), options.draws, worst, ess)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "sampling.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
