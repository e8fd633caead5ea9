"""``pyrovae impute``."""

from typing import Literal

import pandas as pd

import pyrovae
from pyrovae.app.run_question import run_question
from pyrovae.common.checks import at_least
from pyrovae.data import Data


def impute_command(
    run: str,
    data: Data | None = None,
    table: str | None = None,
    out: str = "imputed",
    num_imputations: int = 20,
    chains: bool = True,
    compile: bool | Literal["auto"] = "auto",
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> None:
    """Fill in missing cells several times, so that what is computed from them knows what was missing.

    Writes imputed-00.csv, imputed-01.csv, ... (or .npy), completed copies whose observed cells are as they were, and
    reliable.csv, a row per observation. Apply an estimator to every copy, and pool the results by Rubin's rules.

    Args:
        run: folder that `pyrovae fit` wrote, or one fit's folder of `pyrovae compare`.
        data: data set, as new data; null means the test set of the run. The path of a table is short for --table.
        table: path of a table, which is read as the fit's own was.
        out: folder for the results.
        num_imputations: number of copies.
        chains: whether Hamiltonian Monte Carlo is tried where weights fail; false is faster, and marks more rows as
            unreliable.
        compile: true compiles gradients, false does not, auto does where it saves time.
        seed: seed of the draws.
        device: cpu, cuda, ...; null means CUDA where there is one.
        progress: show progress bars.
    """
    at_least("num_imputations", num_imputations, 1)
    digits = len(str(num_imputations - 1))
    stems = [f"imputed-{k:0{max(2, digits)}}" for k in range(num_imputations)]
    names = [f"{stem}.{kind}" for stem in stems for kind in ("csv", "npy")]
    with run_question(run, data, table, out, [*names, "reliable.csv"]) as question:
        result = pyrovae.impute(
            *question.pair, question.data, num_imputations=num_imputations, chains=chains, compile=compile, seed=seed,
            device=device, progress=progress,
        )  # fmt: skip
        for k, stem in enumerate(stems):
            if result.encoding is not None:
                question.write_like_the_data(f"{stem}.csv", result.table(k))
            else:
                question.write_array(f"{stem}.npy", result.values[k])
        rows = {"missing": result.missing.flatten(1).sum(1).numpy(), "reliable": result.reliable}
        question.write("reliable.csv", pd.DataFrame(rows, index=result.index))
    print(f"{result}\nwrote {num_imputations} copies in {out}")
