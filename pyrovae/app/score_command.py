"""``pyrovae score``."""

from pathlib import Path
from typing import Literal

import pandas as pd
import torch

import pyrovae
from pyrovae.app.run_question import run_question
from pyrovae.data import Data
from pyrovae.programs.isolation import importing

PICTURES, LONGEST = 32, 10  # of the oddest observations; letters of a picture's name


def score_command(
    run: str,
    data: Data | None = None,
    table: str | None = None,
    out: str = "scores",
    score: Literal["evidence", "typicality", "reconstruction"] = "evidence",
    rate: float = 0.1,
    num_particles: int = 500,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> None:
    """Find the observations that are unlike the run's test data, and the features that make them so.

    Writes scores.csv, a row per observation, the oddest first: score, p-value, whether it is rejected, and the feature
    that is least probable given the others; scores.png, the oddest; and, of pictures, oddest.png.

    Args:
        run: folder that `pyrovae fit` wrote, or one fit's folder of `pyrovae compare`.
        data: data set, as new data. The path of a table is short for --table.
        table: path of a table, which is read as the fit's own was.
        out: folder for the results.
        score: minus log evidence, its distance from the test data's mean, or minus the reconstruction's log density.
        rate: largest expected share of normal observations among those that are rejected.
        num_particles: number of draws of the guide per observation.
        seed: seed of the draws.
        device: cpu, cuda, ...; null means CUDA where there is one.
        progress: show progress bars.
    """
    if data is None and table is None:
        raise ValueError("name new data to score, by --data: they are compared with the run's test data")
    with run_question(run, data, table, out, ["scores.csv", "scores.png", "oddest.png"], with_test=True) as question:
        result = pyrovae.anomaly(
            *question.pair, question.data, question.test, score=score, rate=rate, num_particles=num_particles,
            seed=seed, device=device, progress=progress,
        ).sort_values(["pvalue", "score"], ascending=[True, False])  # fmt: skip
        question.write("scores.csv", result)
        with importing():
            from pyrovae import plots
        question.write_figure("scores.png", plots.ranking(result))
        if question.data.image_shape is not None:
            worst = result.head(PICTURES)
            rows = pd.Index(question.data.index).get_indexer(worst.index)
            pictures = question.data.fixed().batch(torch.from_numpy(rows))[0]
            titles = [f"{_short(str(name))}\np = {p:.2g}" for name, p in worst["pvalue"].items()]
            question.write_figure("oddest.png", plots.grid(pictures, question.data.image_shape, titles=titles))
    count = int(result["rejected"].sum())
    print(result.head(10).to_string())
    print(f"{count} of {len(result)} rejected at a rate of {rate:g}\nwrote scores.csv and scores.png in {out}")


def _short(name: str) -> str:
    """Return a picture's name in the width of a picture: without folders and ending, and its last letters."""
    stem = Path(name).stem
    return stem if len(stem) <= LONGEST else f"…{stem[1 - LONGEST :]}"
