"""``pyrovae posterior``."""

import sys
from typing import Literal

import pyrovae
from pyrovae.app.evaluate_command import as_netcdf
from pyrovae.app.run_question import run_question
from pyrovae.common.checks import share
from pyrovae.data import Data


def posterior_command(
    run: str,
    data: Data | None = None,
    table: str | None = None,
    out: str = "posterior",
    num_draws: int = 1000,
    num_chains: int = 4,
    num_warmup: int = 500,
    chains: bool = True,
    level: float = 0.01,
    compile: bool | Literal["auto"] = "auto",
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> None:
    """Draw each observation's latents from its posterior, and say how far to trust the draws.

    Writes posterior.csv, a row per observation (the method, k-hat, R-hat, effective draws), and posterior.nc, the draws
    as an ArviZ netCDF file. Where new data are given, those unlike the run's test data are marked.

    Args:
        run: folder that `pyrovae fit` wrote, or one fit's folder of `pyrovae compare`.
        data: data set, as new data; null means the test set of the run. The path of a table is short for --table.
        table: path of a table, which is read as the fit's own was.
        out: folder for the results.
        num_draws: number of draws per observation.
        num_chains: number of chains of Hamiltonian Monte Carlo, for observations whose weights fail.
        num_warmup: number of transitions per chain that adapt it.
        chains: whether Hamiltonian Monte Carlo is tried where weights fail; false is faster, and marks more as
            unreliable.
        level: p-value up to which an observation is marked as unlike the run's test data.
        compile: true compiles gradients, false does not, auto does where it saves time.
        seed: seed of the draws.
        device: cpu, cuda, ...; null means CUDA where there is one.
        progress: show progress bars.
    """
    with run_question(run, data, table, out, ["posterior.csv", "posterior.nc"], with_test=True) as question:
        reference = question.test
        if reference is not None and len(reference) + 1 < 1 / share("level", level, ends=False):
            print(
                f"not compared with the run's {len(reference)} test data: too few for --level {level:g}",
                file=sys.stderr,
            )
            reference = None
        result = pyrovae.posterior(
            *question.pair, question.data, num_draws=num_draws, num_chains=num_chains, num_warmup=num_warmup,
            chains=chains, reference=reference, level=level, compile=compile, seed=seed, device=device,
            progress=progress,
        )  # fmt: skip
        question.write("posterior.csv", result.table())
        question.folder.write("posterior.nc", as_netcdf(result.to_arviz()))
    print(f"{result}\nwrote posterior.csv and posterior.nc in {out}")
