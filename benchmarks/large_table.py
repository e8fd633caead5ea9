"""The memory of a fit to a Parquet file larger than the others: ``python benchmarks/large_table.py``.

For each number of rows, a file of six columns (numbers, counts, categories, missing cells) is written in parts; a fresh
process maps it (``data.Table(path, mapped=True)``), splits it and fits 300 steps, and prints the most memory that was
its own. Pages of the mapped file, which the system takes back when it needs them, are counted apart.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

PART = 500_000
DOCS = Path(__file__).parent.parent / "docs"


def write(path, rows):
    rng, writer = np.random.default_rng(0), None
    for start in range(0, rows, PART):
        count = min(PART, rows - start)
        factor = rng.normal(size=count)
        columns = {
            "height": 170 + 8 * factor + rng.normal(size=count),
            "income": np.exp(8 + 0.5 * factor + rng.normal(size=count)),
            "visits": rng.poisson(np.exp(0.3 * factor)),
            "grade": rng.integers(1, 6, count),
            "region": rng.choice(["north", "south", "east"], count),
            "weight": 70 + 9 * factor + rng.normal(size=count),
        }
        frame = pd.DataFrame(columns)
        frame.loc[rng.random(count) < 0.05, "weight"] = np.nan
        part = pa.Table.from_pandas(frame, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part)
    writer.close()


def memory(kind):
    return int(re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3


def measure(path):
    """Fit in this process, and print rows, seconds, and megabytes."""
    import torch

    import pyrovae
    from pyrovae import data, guides, models, nn, priors

    most, before, ended = [0.0], memory("RssAnon"), threading.Event()

    def watch():
        while not ended.wait(0.02):
            most[0] = max(most[0], memory("RssAnon"))

    threading.Thread(target=watch, daemon=True).start()
    started = time.monotonic()
    table = data.Table(path, mapped=True)
    read = time.monotonic() - started
    train, validation, _ = table.splits(validation=0.0001, test=0.1)
    torch.manual_seed(0)
    likelihood = train.likelihood()
    decoder = nn.MLP(2, likelihood.features(train.shape))
    model = models.VAE(prior=priors.StandardNormal(2), decoder=decoder, likelihood=likelihood)
    guide = guides.MeanField(nn.Table(lambda width: nn.MLP(width, 32), train.inputs), 2)
    started = time.monotonic()
    pyrovae.fit(model, guide, train, validation_data=validation, steps=300, compile=False, device="cpu", progress=False)
    seconds = time.monotonic() - started
    ended.set()
    print(f"{len(table)},{read:.1f},{seconds:.1f},{most[0] - before:.0f}")


def main(sizes, out):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            path = Path(folder) / "table.parquet"
            write(path, size)
            command = [sys.executable, "-W", "ignore", __file__, "--measure", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            count, read, seconds, megabytes = done.stdout.strip().split(",")
            rows.append(
                f"| {int(count):,} | {path.stat().st_size / 1e6:.0f} MB | {read} s | {seconds} s | {megabytes} MB |"
            )
            print(rows[-1], flush=True)
    head = "| rows | Parquet file | reading | splits and 300 steps | own memory, at most |\n|---|---|---|---|---|\n"
    out.write_text(f"{__doc__.split(':')[0]} (`benchmarks/large_table.py`).\n\n" + head + "\n".join(rows) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--out", type=Path, default=DOCS / "large-table.md")
    parser.add_argument("--measure")
    arguments = parser.parse_args()
    measure(arguments.measure) if arguments.measure else main(arguments.sizes, arguments.out)
