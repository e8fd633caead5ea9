"""What evaluation costs, and how the cost of training and evaluation grows."""

import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from cases import CASES, Case, bits
from peer import DEVICE, networks, programs
from torch import nn

from pyrovae import evaluate, fit

PARTICLES = 5000
EVALUATED = 64  # images of which it is shown how the cost grows
ROWS = 8000  # of a chunk of the floor, as in an evaluation


def _relu(case: Case):
    """The case's networks with the activation that pyrovae's own have."""
    encoder, decoder = networks(case)
    for network in (encoder, decoder):
        for name, layer in list(network.body.named_children()):
            if isinstance(layer, nn.Softplus):
                setattr(network.body, name, nn.ReLU())
    return encoder, decoder


def _timed(act) -> float:
    started = time.perf_counter()
    act()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _products(decoder: nn.Module, rows: int) -> float:
    """Seconds of the decoder's matrix products on so many rows."""
    layers = [layer for layer in decoder.modules() if isinstance(layer, nn.Linear)]
    work = []
    for layer in layers:
        given = torch.randn(ROWS, layer.in_features, device=DEVICE)
        work.append((given, layer.weight.detach().T, torch.empty(ROWS, layer.out_features, device=DEVICE)))

    def run() -> None:
        for _ in range(rows // ROWS):
            for given, weight, out in work:
                torch.mm(given, weight, out=out)

    run()
    return _timed(run)


def evaluation(images: int) -> pd.DataFrame:
    """Time the evaluation of images, beside the matrix products of their decoder.

    What is there for comparison, eager evaluation and another activation, is timed on a tenth of the images. The time
    of compiling is that of an evaluation of two batches, and is shown apart.
    """
    rows = []
    case = CASES["mnist"]
    few = max(64, images // 10)
    for activation, make, modes in (("softplus", networks, {True: images, False: few}), ("ReLU", _relu, {True: few})):
        pair = networks_pair(case, make)
        for compile, size in modes.items():
            x = bits(case)[0][:size].to(DEVICE)
            floor = _products(pair[1], size * PARTICLES)
            options = {"num_particles": PARTICLES, "compile": compile, "progress": False}
            before = _timed(partial(evaluate, *pair[0], x[:64], **options))
            seconds = _timed(partial(evaluate, *pair[0], x, **options))
            compiling = max(0.0, before - seconds * 64 / size) if compile else 0.0
            name = f"evaluate, {'compiled' if compile else 'eager'}, {activation}"
            rows.append([name, size, seconds, floor, seconds / floor, compiling])
    columns = ["what", "images", "seconds", "products alone, seconds", "ratio", "of a first call, seconds more"]
    return pd.DataFrame(rows, columns=columns)


def networks_pair(case: Case, make):
    encoder, decoder = make(case)
    return programs(case, encoder, decoder), decoder


def _memory() -> float:
    """Most memory that this process has held, in MB: of the device, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3


def growth() -> pd.DataFrame:
    """Time a compiled step, and an evaluation, as one number grows and the rest stay."""
    rows = []
    base = replace(CASES["mnist"], size=6000)
    for what, values in (("batch", (64, 256, 1024)), ("latent", (10, 50, 250)), ("size", (6_000, 12_000, 24_000))):
        for value in values:
            case = replace(base, **{what: value})
            x = bits(case)[0].to(DEVICE)
            x = x[: len(x) // case.batch * case.batch]
            fitted = fit(
                *programs(case, *networks(case)), x, epochs=4, batch_size=case.batch, compile=True, progress=False
            )
            ends = fitted.history.groupby("epoch")["seconds"].max().diff().dropna().median()
            rows.append([f"training, {what} = {value}", ends, 1e6 * ends / len(x), float("nan")])
    for particles in (250, 1000, 4000, 16_000):
        command = [sys.executable, "-W", "ignore", __file__, str(particles)]
        seconds, memory = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        rows.append([f"evaluating, particles = {particles}", seconds, 1e6 * seconds / (EVALUATED * particles), memory])
    columns = ["what", "seconds an epoch or a call", "microseconds a observation (and particle)", "most memory, MB"]
    return pd.DataFrame(rows, columns=columns)


def judge(particles: int) -> None:
    """Evaluate images with so many particles; print seconds, and the most memory that this process has held."""
    pair, _ = networks_pair(CASES["mnist"], networks)
    x = bits(replace(CASES["mnist"], size=6000))[0][:EVALUATED].to(DEVICE)
    act = partial(evaluate, *pair, x, num_particles=particles, compile=False, progress=False)
    evaluate(*pair, x, num_particles=2, compile=False, progress=False)  # what a process does once
    print(_timed(act), _memory())


if __name__ == "__main__":
    judge(int(sys.argv[1]))
