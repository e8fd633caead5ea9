"""A fit that torchrun starts in several processes: see test_distributed.py."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed
from conftest import Watched, bits, make_oracle, make_vae, planted

from pyrovae import fit, guides, nn

options = json.loads(sys.argv[1])
folder, kind, dies = Path(options.pop("folder")), options.pop("kind"), options.pop("dies", None)
by_rank, full = options.pop("by_rank", {}), options.pop("full", None)
if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
rank = int(os.environ.get("RANK", 0))
seen = []
options.update({name: values[rank] for name, values in by_rank.items() if name not in {"size", "latent_dim"}})


def hook(indices, batch):
    seen.append(indices.tolist())
    if dies and rank == 1 and len(seen) == dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


torch.manual_seed(rank)  # the caller's own state differs between processes, and must not matter
if kind == "oracle":
    model, x = make_oracle(2, 5, 70)
    with torch.random.fork_rng():
        torch.manual_seed(rank)  # the first process's parameters count
        guide = guides.MeanField(nn.MLP(5, 8, hidden=(8,)), 2).double()
else:
    size, latent_dim = (by_rank.get(name, [known, known])[rank] for name, known in (("size", 70), ("latent_dim", 3)))
    (model, guide), x = make_vae(latent_dim=latent_dim), bits(size)
if full and rank == 0:
    fsync, calls = os.fsync, []

    def limited(descriptor):
        calls.append(descriptor)
        if len(calls) > full:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    os.fsync = limited
try:
    fitted = fit(model, guide, planted(x, 30) if kind == "nan" else Watched(x, hook), progress=False, **options)
except Exception as error:
    (folder / f"error-{rank}.txt").write_text(str(error))
    raise
(folder / f"seen-{rank}.json").write_text(json.dumps(seen))
fitted.history.drop(columns="seconds").to_csv(folder / f"history-{rank}.csv", index=False)
torch.save([p.detach() for m in (model, guide) for p in m.parameters()], folder / f"params-{rank}.pt")
if "RANK" in os.environ:
    torch.distributed.destroy_process_group()
