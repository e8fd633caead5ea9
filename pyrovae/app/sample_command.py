"""``pyrovae sample``."""

from typing import Any

import torch

import pyrovae
from pyrovae.app.run_question import RunQuestion, run_question
from pyrovae.common.checks import at_least
from pyrovae.data import Data, Table
from pyrovae.programs.isolation import importing

PICTURES = 64  # that are drawn


def sample_command(
    run: str,
    data: Data | None = None,
    table: str | None = None,
    out: str = "sample",
    num: int = 100,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> None:
    """Draw new data from a fitted model.

    Writes sample.csv in the columns, units and categories of the run's table, or sample.npy, and, of pictures,
    sample.png. A model of covariates is given those of the data's rows in turn.

    Args:
        run: folder that `pyrovae fit` wrote, or one fit's folder of `pyrovae compare`.
        data: data set whose covariates are given; null means the test set of the run. The path of a table is short for
            --table.
        table: path of a table whose covariates are given, and which is read as the fit's own was.
        out: folder for the results.
        num: number of draws.
        seed: seed of the draws.
        device: cpu, cuda, ...; null means CUDA where there is one.
        progress: show progress bars.
    """
    at_least("num", num, 1)
    with run_question(run, data, table, out, ["sample.csv", "sample.npy", "sample.png"]) as question:
        values = _drawn(question, num, {"seed": seed, "device": device, "progress": progress})
        if isinstance(question.data, Table):
            frame = question.data.to_frame(values)
            question.folder.write_table("sample.csv", frame, index=False)
            print(frame.head(10).to_string(index=False))
        else:
            question.write_array("sample.npy", values)
        if question.data.image_shape is not None:
            with importing():
                from pyrovae.plots import grid
            question.write_figure("sample.png", grid(values[:PICTURES].numpy(), question.data.image_shape))
    print(f"wrote {num} draws in {out}")


def _drawn(question: RunQuestion, num: int, options: dict[str, Any]) -> torch.Tensor:
    """Draw data; a model that computes with what it observes is given the data as a template."""
    data, model = question.data.unweighted(), question.pair[0]
    rows = torch.arange(num, device="cpu") % len(data)
    try:
        covariates = data.subset(rows).batch(slice(0, num))[1 : len(data.fields)]
        drawn = pyrovae.sample(model, num, *covariates, **options)
        return drawn[drawn.observed[0]]
    except ValueError as error:
        if "pyrovae.simulate" not in str(error):
            raise
        return pyrovae.simulate(model, data, num_simulations=num, **options).data.tensors[0]
