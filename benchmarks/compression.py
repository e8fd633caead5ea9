"""How short does bits back make pictures? ``python benchmarks/compression.py [--mnist FOLDER]``.

A model of binarised digits is fitted, and held-out digits are compressed: the length of the whole code, its header and
first bits included, beside minus the ELBO of the same pictures, and beside general compressors of the same bits, packed
eight to a byte: gzip, bzip2 and LZMA of all pictures at once, PNG of one bit a pixel of all pictures on a sheet and of
every picture in a file of its own. What pyrovae compressed is decompressed and compared. With ``--write``,
docs/compression.md is written.
"""

import argparse
import bz2
import gzip
import io
import lzma
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, priors

DOCS = Path(__file__).parent.parent / "docs"


def fitted(train, validation, latents, hidden, epochs):
    torch.manual_seed(0)
    size = int(np.prod(train.image_shape))
    model = models.VAE(
        prior=priors.StandardNormal(latents), decoder=nn.MLP(latents, size, hidden=hidden),
        likelihood=likelihoods.Bernoulli(),
    )  # fmt: skip
    guide = guides.MeanField(nn.MLP(size, hidden[0], hidden=hidden), latents)
    return pyrovae.fit(model, guide, train, validation_data=validation, patience=20, epochs=epochs, progress=False)


def png(pictures):
    buffer = io.BytesIO()
    Image.fromarray((pictures * 255).astype(np.uint8)).convert("1").save(buffer, format="png", optimize=True)
    return len(buffer.getvalue())


def lengths(fit, test):
    """Return the bits of each picture by each way, and seconds of compressing and decompressing."""
    bits = test.fixed().tensors[0].float()
    pictures = bits.numpy().reshape(-1, *test.image_shape[1:])
    packed = np.packbits(pictures.astype(bool)).tobytes()
    started = time.monotonic()
    content = pyrovae.compress(fit.model, fit.guide, bits, verify=False, progress=False)
    middle = time.monotonic()
    back = pyrovae.decompress(fit.model, fit.guide, content, progress=False)
    ended = time.monotonic()
    assert torch.equal(back, bits)
    elbo = pyrovae.evaluate(fit.model, fit.guide, bits, num_particles=500, progress=False).elbo
    sheet = np.concatenate(list(pictures), axis=0)
    count, size = len(pictures), {
        "minus the ELBO": -float(elbo.double().sum()) / np.log(2) / 8,
        "pyrovae.compress": len(content),
        "gzip": len(gzip.compress(packed, 9)),
        "bzip2": len(bz2.compress(packed, 9)),
        "LZMA": len(lzma.compress(packed, preset=9 | lzma.PRESET_EXTREME)),
        "PNG, one sheet": png(sheet),
        "PNG, a file each": sum(map(png, pictures)),
        "uncompressed": len(packed),
    }  # fmt: skip
    table = pd.DataFrame({"bytes": size})
    table["bits per picture"] = table["bytes"] * 8 / count
    table["over minus the ELBO"] = table["bytes"] / table.loc["minus the ELBO", "bytes"]
    return table, middle - started, ended - middle


def main(mnist=None, epochs=None, count=1000):
    binarise = data.Static()
    if mnist is None:
        train, validation, test = data.Digits(binarise=binarise).splits(seed=0)
        fit = fitted(train, validation, 8, (64,), epochs or 300)
    else:
        train, validation, test = data.MNIST(root=mnist, binarise=binarise).splits(seed=0)
        fit = fitted(train, validation, 32, (400, 200), epochs or 30)
    test = test.subset(range(min(count, len(test))))
    table, forth, back = lengths(fit, test)
    name = "digits of scikit-learn" if mnist is None else "MNIST"
    title = f"{len(test)} held-out binarised {name}, {test.shape[1]} by {test.shape[2]}"
    print(table.round({"bytes": 0, "bits per picture": 1, "over minus the ELBO": 3}).to_string())
    print(f"{title}: compressed in {forth:.1f} s, decompressed in {back:.1f} s")
    return title, table, forth, back


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="folder that holds MNIST/raw: compress MNIST as well")
    parser.add_argument("--write", action="store_true", help="write docs/compression.md")
    arguments = parser.parse_args()
    parts = [main(folder) for folder in ([None, arguments.mnist] if arguments.mnist else [None])]
    if arguments.write:
        text = [
            "# Lengths of compressed pictures",
            "",
            "Written by `python benchmarks/compression.py --mnist FOLDER --write`.",
        ]
        for title, table, forth, back in parts:
            rows = [f"| {way} | {b:,.0f} | {p:.1f} | {r:.3f} |" for way, b, p, r in table.itertuples()]
            text += ["", f"{title}: compressed in {forth:.1f} s, decompressed in {back:.1f} s.", "",
                     "| | bytes | bits per picture | over minus the ELBO |", "|---|---|---|---|", *rows]  # fmt: skip
        (DOCS / "compression.md").write_text("\n".join(text) + "\n")
