"""A fit under way: its state, its steps, and what a checkpoint holds of it."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceTMC_ELBO
from torch import Tensor, nn

from pyrovae.common.checks import brief
from pyrovae.data import Data
from pyrovae.importance.log_weights import stream
from pyrovae.importance.particles import non_finite_site
from pyrovae.importance.question import Question, placed_data
from pyrovae.importance.reading import read
from pyrovae.objectives import Objective
from pyrovae.programs.compilation import State
from pyrovae.programs.densities import mean_density
from pyrovae.programs.isolation import default_device, modes, random_state, seed_streams
from pyrovae.programs.layout import Layout
from pyrovae.programs.pair import Pair
from pyrovae.programs.parameters import Restore, WithParams, leaf_of
from pyrovae.programs.sites import sample_sites
from pyrovae.programs.streams import generator, stream_seed
from pyrovae.programs.types import Program, Trace
from pyrovae.training import storage
from pyrovae.training.compiling import Compiler
from pyrovae.training.described import difference, of_a_program
from pyrovae.training.errors import FitError
from pyrovae.training.group import Group, LostProcess
from pyrovae.training.history import History
from pyrovae.training.jitted import without_jit
from pyrovae.training.result import (
    BARE,
    Fit,
    carrying,
    describe,
    fitted_tensors,
    history_rows,
    pair_tensors,
    restore_pair,
)
from pyrovae.training.step import Params, Stepper, TorchStepper

SAMPLED = 16  # steps at which a resumed fit's schedules are looked at
LOOK_EVERY = 64  # steps on CUDA between two looks at their losses, each of which waits for the device
DTYPES = {"float32": None, "float64": torch.float64, "bfloat16": None}


class Run:
    """A fit under way: everything that a checkpoint holds."""

    stepper: Stepper
    compiler: Compiler
    layout: Layout
    schedule: Callable[[int], float] | None

    def __init__(
        self,
        model: Program,
        guide: Program,
        data: Any,
        validation_data: Any,
        *,
        device: Any,
        precision: str,
        seed: int,
        batch_size: int,
    ) -> None:
        if not isinstance(precision, str) or precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
        self.store: dict[str, Any] = {"params": {}, "constraints": {}}
        self.pending: dict[str, Tensor] = {}
        self.pair = Pair(self._bare_program(model), self._bare_program(guide))
        self.device = default_device(device)
        for module in self.pair.all_modules:
            module.to(self.device, DTYPES[precision])
        self.data = placed_data(self.pair, data, self.device).numbered(assumed=True)
        self.validation = None
        if validation_data is not None:
            try:
                self.validation = placed_data(self.pair, validation_data, self.device).fixed().numbered(assumed=True)
            except ValueError as error:
                raise ValueError(f"validation_data: {error}") from error
        self.seed, self.batch_size, self.group = seed, batch_size, Group()
        self.per_epoch = -(-len(self.data) // batch_size)
        self.dtype, self.bfloat16 = DTYPES[precision], precision == "bfloat16"
        self.history = History()
        self.step, self.seconds, self.stopped = 0, 0.0, ""
        self.best_bound, self.best_epoch, self.epoch = -math.inf, 0, 0
        self.checked = False  # whether the objective was run once, validated
        self.best: dict[str, Tensor] = {}
        self.good: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}

    def _bare_program(self, program: Program) -> Program:
        """Unpack a fitted program, and go on from the bare parameters that it carries."""
        while isinstance(program, WithParams):
            for name, value in program.store["params"].items():
                if self.store["params"].setdefault(name, value) is not value:
                    raise ValueError(f"model and guide carry different parameters named {name!r}: rename one of them")
            self.store["constraints"].update(program.store["constraints"])
            self.pending.update(program.pending)
            program = program.program
        return program

    def prepare(self, objective: Any) -> None:
        """Read the pair and the data, and find the parameters."""
        with modes(self.pair.all_modules, training=False), torch.no_grad(), Restore(self.pending):
            self.layout = read(self.pair, self.data, self.batch_size)
            if self.validation is not None:
                try:
                    read(self.pair, self.validation, self.batch_size)
                except ValueError as error:
                    raise ValueError(f"validation_data: {error}") from error
        if self.layout.uneven:
            raise ValueError(
                f"latent site {self.layout.uneven[0]!r} is scaled differently in the two programs, so that its KL is "
                "none: give the data plates of both the same size, and wrap both in the same poutine.scale"
            )
        self.objective = without_jit(Trace_ELBO() if objective is None else objective)
        self._check_unguided()
        own = [self.objective.own] if isinstance(self.objective, Objective) else []
        self.history = History(list(self.weights_at(0)))
        for module in own:
            module.to(self.device, self.dtype)
        traces = first_traces(self.pair, self.data, self.layout)
        self.params, self.bare = find_params(self.pair, self.data, self.layout, traces)
        model, guide = self.pair.model, self.pair.guide
        self.programs = {
            "model": of_a_program(model, "model", traces[0]),
            "guide": of_a_program(guide, "guide", traces[1], model=model),
        }
        if not self.params:
            raise ValueError(
                "the pair has no trainable parameter: pass modules, or register them with pyro.module or pyro.param"
            )
        parts = self.group.size > 1 or self.per_epoch > 1
        if parts and self.layout.global_latents and not self.layout.subsampled:
            raise ValueError(
                f"latent site {self.layout.global_latents[0]!r} is shared by all {len(self.data)} data, and the data "
                f"plate is as long as a batch: write pyro.plate('data', {len(self.data)}, subsample_size=len(x)), so "
                "that the loss of a part stands for all data, or fit all of them in one batch"
            )
        constraints = pyro.get_param_store().get_state()["constraints"]
        modules = [*self.pair.all_modules, *own]
        self.state = State(modules, self.bare, {name: constraints[name] for name in self.bare})
        seed_streams("fit", self.seed, self.device)
        self.good = self.snapshot()

    def start_together(self) -> None:
        """Give every process the first one's tensors."""
        if self.group.size > 1:
            self.agree()
            self.good = self.snapshot()

    @property
    def all_modules(self) -> list[nn.Module]:
        """The modules of the pair and of the objective."""
        return [*self.pair.all_modules, *([self.objective.own] if isinstance(self.objective, Objective) else [])]

    def loss(self, batch: tuple[Tensor, ...]) -> float:
        """Return the objective's loss on a batch, which holds its data's numbers, summed as the objective does."""
        recorder = self.stepper.recorder
        return float(self.objective.loss(recorder.model, recorder.guide, *recorder.given(batch)))

    def weights_at(self, step: int) -> dict[str, float]:
        """Give the objective's weights their values at a step, and return them by name; Pyro's objectives have none."""
        return self.objective.at(step) if isinstance(self.objective, Objective) else {}

    def _check_unguided(self) -> None:
        """See that the objective does with latents that the guide does not sample what they are marked for.

        Raises:
            ValueError: where one would be drawn from its prior and its density counted, which is no bound.
        """
        if not self.layout.unguided:
            return
        sites = dict(sample_sites(first_traces(self.pair, self.data, self.layout)[0]))
        for name in self.layout.unguided:
            marks = sites[name]["infer"]
            if marks.get("enumerate") != "parallel":
                raise ValueError(
                    f"latent site {name!r} of the model is not sampled by the guide: sample it in the guide, or mark "
                    'it infer={"enumerate": "parallel"} and use TraceEnum_ELBO'
                )
            what, right = "summed out", TraceEnum_ELBO  # which takes several draws for all values
            if marks.get("num_samples"):
                what, right = "drawn several times", TraceTMC_ELBO  # which takes all values for several draws
            if not isinstance(self.objective, right):
                raise ValueError(
                    f"latent site {name!r} of the model is marked to be {what}, which {type(self.objective).__name__} "
                    f"does not do: use objective={right.__name__}(), or sample it in the guide"
                )

    def order(self, epoch: int) -> Tensor:
        """Return the data's order in an epoch, a function of the seed and the epoch alone.

        A batch that holds the whole set is in the set's own order, as under plain Pyro: there a program may have
        parameters ``[N]`` of every datum, and take none by the plate's indices.
        """
        if self.per_epoch == 1:
            return torch.arange(len(self.data), device=self.device)
        numbers = generator("order", self.seed, epoch)
        return torch.randperm(len(self.data), generator=numbers, device="cpu").to(self.device)

    def batches(self, total: int) -> Iterator[tuple[int, Tensor, tuple[Tensor, ...]]]:
        """Iterate over the steps that are left: the epoch, the data's indices and the batch, made when it is due."""
        while self.step < total:
            epoch, position = divmod(self.step, self.per_epoch)
            parts = self.order(epoch).split(self.batch_size)[position : position + total - self.step]
            yield from zip(repeat(epoch), parts, self._own(parts), strict=False)

    def _own(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Iterate over this process's shares of batches."""
        if self.group.size == 1:
            return self.data.stream(parts)
        shares = [self.group.share(len(part)) for part in parts]
        if self.data.binarise is not None and self.data.binarise.random:  # bits are drawn for the whole batch
            whole = self.data.stream(parts)
            return (tuple(share.of(t) for t in batch) for share, batch in zip(shares, whole, strict=True))
        return self.data.stream([share.of(part) for share, part in zip(shares, parts, strict=True)])

    def take(self, epoch: int, indices: Tensor, batch: tuple[Tensor, ...], started: float) -> None:
        """Take a step on a batch, the data at ``indices``."""
        if self.schedule is not None:
            lr = self.schedule(self.step)
            if not 0 <= lr < math.inf:
                text = f"the learning rate's schedule gives {lr}, where a finite number of at least 0 is needed"
                self._fail(text, None, indices.tolist(), batch, None)
            self.stepper.set_lr(float(lr))
        try:
            weights = self.weights_at(self.step)
        except ValueError as error:  # of a function of the user's
            self._fail(str(error), None, indices.tolist(), batch, error)
        if not self.checked:
            self.checked = True
            self._check_first(batch)
        if self.group.size > 1 and isinstance(self.stepper, TorchStepper):
            self.stepper.gradients.share = self.group.share(len(indices))
            self.stepper.gradients.seed = stream_seed("share", self.seed, self.step)
        try:
            row = self.stepper.step(batch)
        except LostProcess:
            raise
        except Exception as error:  # a program may fail in any way; what it was doing is said
            self._fail(f"{type(error).__name__}: {brief(error)}", None, indices.tolist(), batch, error)
        self.history.append(self.step, epoch, time.monotonic() - started, row, self.stepper.lr, weights)
        self.step += 1
        if self.device.type == "cpu" or self.step % LOOK_EVERY == 0:
            self.look()

    def look(self) -> None:
        """See that every step so far was finite.

        Raises:
            FitError: with the first that was not, and where it came from.
        """
        if bool(self.stepper.healthy):
            return
        self.step = self.history.cut_at_first_not_finite()
        indices = self.indices(self.step)
        batch = self.data.batch(indices)
        loss, norm = self.history.failed
        if math.isfinite(loss):
            self._fail(f"the gradient's norm is {norm:g}", None, indices.tolist(), batch, None)
        site, bad = self._culprit(batch)
        data = ", ".join(str(int(i)) for i in indices[bad][:5])
        more = ", ..." if len(bad) > 5 else ""
        text = f"the loss is {loss:g}, first at site {site!r}, for data [{data}{more}]"
        rest = [i for i in range(len(indices)) if i not in set(bad)]
        self._fail(text, site, indices[bad + rest].tolist(), batch, None)

    def indices(self, step: int) -> Tensor:
        """Return the data of a step."""
        epoch, position = divmod(step, self.per_epoch)
        return self.order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]

    def _check_first(self, batch: tuple[Tensor, ...]) -> None:
        """Run the objective once, validated, so that a mistake gets Pyro's own message; no noise is used up."""
        eval_mode = modes(self.all_modules, training=False)
        with (
            eval_mode,
            random_state("first look", self.seed, self.device),
            pyro.validation_enabled(True),
            torch.no_grad(),
        ):
            # an objective that has gradients only has no loss
            with suppress(NotImplementedError), self.compiler.counting():
                self.loss(batch)

    def _culprit(self, batch: tuple[Tensor, ...]) -> tuple[str, list[int]]:
        num_data, recorder = len(batch[0]), self.stepper.recorder
        if self.group.size > 1:  # what was recorded is this process's share alone
            recorder.clear()
        if not recorder.model_traces:  # as where the step ran compiled: run it once more, as the program is written
            with suppress(Exception), torch.no_grad():
                self.loss(batch)
        if not recorder.model_traces or not recorder.guide_traces:
            return "unknown", []
        model_trace, guide_trace = recorder.model_traces[-1], recorder.guide_traces[-1]
        with torch.no_grad():
            site = non_finite_site(model_trace, guide_trace)
            plate = self.layout.plate
            total = mean_density(model_trace, plate, num_data) - mean_density(guide_trace, plate, num_data)
        return site, (~total.isfinite()).nonzero().flatten().tolist()

    def _fail(self, text: str, site: str | None, indices: list[int], batch: Any, cause: Exception | None) -> NoReturn:
        if not self._still_good(batch):
            self.back_to(self.good)
        self.stepper.healthy.fill_(True)  # as it is again
        shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        raise FitError(
            f"the fit stopped at step {self.step}, batch of data [{shown}]: {text}; the last good state is kept",
            step=self.step,
            site=site,
            indices=indices,
        ) from cause

    def _still_good(self, batch: Any) -> bool:
        """Whether the parameters give a finite loss on some other data, so that this batch alone is to blame."""
        others = self.data.batch(self.order(0)[: len(batch[0])])
        try:
            with torch.no_grad(), modes(self.all_modules, training=False):
                return math.isfinite(self.loss(others))
        except Exception:  # a program may fail in any way, and then these data are no better
            return False

    def end_epoch(self, patience: int | None) -> None:
        """Keep the state, evaluate it on the validation data, and decide whether to stop."""
        self.look()
        self.epoch += 1
        self.agree()
        self.good = self.snapshot()
        bound = self.validate()
        self.stepper.end_epoch(
            lambda: self.history.recent("loss", self.per_epoch) if self.validation is None else -bound
        )
        if self.validation is None:
            return
        if bound > self.best_bound:
            self.best_bound, self.best_epoch = bound, self.epoch
            self.best = self.good
        elif patience is not None and self.epoch - self.best_epoch >= patience:
            self.stopped = "patience"

    def validate(self) -> float:
        """Write the validation bound into the last row of the history, and return it; NaN without validation data.

        Raises:
            FitError: when it is not a number.
        """
        if self.validation is None:
            return math.nan
        try:
            found = torch.tensor(self._validation_bound(), dtype=torch.float64, device=self.device)
            self.group.same([found])  # so that all take the same decision
            bound = float(found)
        except ValueError as error:
            text = f"the fit stopped at step {self.step}: the validation bound cannot be computed: {error}"
            raise FitError(text, step=self.step, site=None, indices=[]) from error
        self.history.validated(bound)
        return bound

    def finish(self, patience: int | None) -> None:
        """Go back to the best state when there is one; the last is kept for a fit that goes on from here."""
        self.look()
        if patience is not None and self.best:
            self.last = self.snapshot()
            self.back_to(self.best)

    @torch.no_grad()
    def _validation_bound(self) -> float:
        """Return the mean bound of the validation data, nats per datum; the same noise at every call."""
        assert self.validation is not None
        with modes(self.all_modules, training=False), random_state("validation", self.seed, self.device):
            if not self.layout.global_latents and not self.layout.unguided:
                asked = Question(self.pair.numbered(self.layout), self.validation, self.layout, self.seed)
                return float(torch.cat([part[0] for _, part in stream(asked, 1, 256)]).double().mean())
            recorder, total = self.stepper.recorder, 0.0
            for indices, batch in self.validation.batches(256):
                loss = self.loss(batch)
                total -= loss / recorder.loss_size(self.layout, len(indices)) * len(indices)
                recorder.clear()
            return total / len(self.validation)

    def agree(self) -> None:
        """Give every process the buffers of the first: batch statistics differ, since each sees its share alone."""
        self.group.same(self.state.values)

    def snapshot(self) -> dict[str, Tensor]:
        """Copy every tensor of the pair."""
        return {key: t.detach().clone() for key, t in pair_tensors(self.pair, self.bare).items()}

    @torch.no_grad()
    def back_to(self, tensors: dict[str, Tensor]) -> None:
        """Put a copy of the pair's tensors back."""
        for key, t in pair_tensors(self.pair, self.bare).items():
            t.copy_(tensors[key])

    def result(self, stopped: str) -> Fit:
        """Return the fit as it stands."""
        for p in self.params.values():
            p.grad = None
        store = pyro.get_param_store().get_state()
        programs = carrying(self.pair.model, self.pair.guide, dict(store), {})
        said = "; ".join(self.compiler.lines)
        return Fit(
            *programs, self.history.frame(), stopped or "finished", self.seconds, said, bool(self.compiler.chosen),
            dict(self.bare),
        )  # fmt: skip

    def save(self, folder: Path, settings: dict[str, Any], stopped: str) -> None:
        """Write a checkpoint, the first process alone: a saved fit, and what is needed to go on."""
        self.look()
        self.agree()
        if self.group.rank:
            return
        model, guide, said = self.pair.model, self.pair.guide, "; ".join(self.compiler.lines)
        compile = bool(self.compiler.chosen)
        so_far = Fit(model, guide, self.history.frame(), stopped, self.seconds, said, compile, self.bare)
        tensors, document = describe(so_far)
        document["resume"] = {
            "settings": settings,
            "optimizer": storage.flatten(self.stepper.state(), "optimizer", tensors),
            "compiled": self.compiler.state(),
            "progress": [
                self.step,
                self.epoch,
                self.best_epoch,
                self.best_bound if self.best_epoch else None,
                self.stopped,
            ],
        }
        if isinstance(self.objective, Objective):
            tensors.update({f"objective/{key}": value for key, value in self.objective.own.state_dict().items()})
            if self.objective.optimizer is not None:
                state = self.objective.optimizer.state_dict()
                document["resume"]["second"] = storage.flatten(state, "second", tensors)
        tensors["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random-cuda"] = torch.cuda.get_rng_state(self.device)
        for prefix, state in (("best", self.best), ("last", self.last)):
            tensors.update({f"{prefix}/{key}": value for key, value in state.items()})
        storage.write(folder, tensors, document)

    def restore(self, folder: Path, settings: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: when it is unreadable, or of another pair or other settings.
        """
        tensors, document = storage.read(folder)
        resume = document.get("resume")
        if resume is None:
            raise ValueError(
                f"{str(folder)!r} holds a saved fit that cannot be resumed: name another checkpoint folder"
            )
        if document["format"] == 1:
            raise ValueError(
                f"the checkpoint in {str(folder)!r} was made by an older version of pyrovae, which did not keep what "
                "it was made with: load() it, or resume=False"
            )
        found = difference(resume["settings"], settings)
        if found is not None:
            where, saved, given = found
            raise ValueError(
                f"the checkpoint in {str(folder)!r} was made with {where}={saved}, got {where}={given}: use the same, "
                "or resume=False"
            )
        last = {key.removeprefix("last/"): t for key, t in tensors.items() if key.startswith("last/")}
        restore_pair(self.pair, self.bare, last or fitted_tensors(tensors), repr(str(folder)))
        self.stepper.restore(storage.unflatten(resume["optimizer"], tensors))
        if isinstance(self.objective, Objective):
            own = {k.removeprefix("objective/"): t for k, t in tensors.items() if k.startswith("objective/")}
            self.objective.own.load_state_dict(own)
            if self.objective.optimizer is not None:
                self.objective.optimizer.load_state_dict(storage.unflatten(resume["second"], tensors))
        self.compiler.restore(resume.get("compiled", {}))
        self._see_same_schedules(folder, pd.DataFrame(history_rows(tensors), columns=document["columns"]))
        self.step, self.epoch, self.best_epoch, best, self.stopped = resume["progress"]
        self.best_bound = -math.inf if best is None else best
        self.best = {key.removeprefix("best/"): t for key, t in tensors.items() if key.startswith("best/")}
        self.history.go_on_from(self._with_weights(history_rows(tensors)))
        self.seconds, self.good = document["seconds"], self.snapshot()
        torch.set_rng_state(tensors["random"])
        if self.device.type == "cuda" and "random-cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random-cuda"], self.device)

    def _see_same_schedules(self, folder: Path, rows: pd.DataFrame) -> None:
        """See that learning rate and weights have been, at some of the steps taken, what they are now said to be.

        Raises:
            ValueError: naming the first that has not.
        """
        for _, row in rows.iloc[np.unique(np.linspace(0, len(rows) - 1, SAMPLED).round().astype(int))].iterrows():
            step = int(row["step"])
            given = dict(zip(self.history.weight_columns, self.weights_at(step).values(), strict=True))
            if self.schedule is not None:
                given["lr"] = float(self.schedule(step))
            for name, value in given.items():
                if name in row and not math.isclose(row[name], value, rel_tol=1e-5, abs_tol=1e-12):
                    raise ValueError(
                        f"the checkpoint in {str(folder)!r} was made with {name}={row[name]:g} at step {step}, got "
                        f"{name}={value:g} there: use the same, or resume=False"
                    )

    def _with_weights(self, rows: np.ndarray) -> np.ndarray:
        """Return a saved history's rows with the weights, which not every version of pyrovae has kept."""
        if rows.shape[1] == len(self.history.columns):
            return rows
        weights = [[*self.weights_at(int(step)).values()] for step in rows[:, 0]]
        return np.hstack([rows, np.reshape(weights, (len(rows), len(self.history.weights)))])


def first_traces(pair: Pair, data: Data, layout: Layout) -> tuple[Trace, Trace]:
    """Run the pair on the batch that its layout was read from, model first; a look that leaves no statistics behind."""
    batch = data.numbered(assumed=True).batch(slice(0, layout.num_data))
    with modes(pair.all_modules, training=False), torch.no_grad():
        return pair.numbered(replace(layout, summed=())).traces(batch)


def find_params(
    pair: Pair, data: Data, layout: Layout, traces: tuple[Trace, Trace] | None = None
) -> tuple[Params, dict[str, Tensor]]:
    """Return the pair's trainable parameters by name, and those among them that belong to no module.

    They are the parameters of the modules that were passed as model or guide, and all that the programs register with
    ``pyro.module`` or declare with ``pyro.param``.
    """
    model_trace, guide_trace = traces or first_traces(pair, data, layout)
    owned = {id(p): f"{name}/{key}" for name, module in pair.modules.items() for key, p in module.named_parameters()}
    params: Params = {}
    bare: dict[str, Tensor] = {}
    for program in (pair.model, pair.guide):
        if isinstance(program, nn.Module):
            params.update({owned[id(p)]: p for p in program.parameters() if p.requires_grad})
    for trace in (model_trace, guide_trace):
        for name, site in trace.nodes.items():
            if site["type"] != "param":
                continue
            leaf = leaf_of(site["value"])
            if id(leaf) not in owned:
                if bare.setdefault(name, leaf) is not leaf:
                    raise ValueError(f"two parameters are named {name!r}: rename one of them")
                params[f"{BARE}/{name}"] = leaf
            elif leaf.requires_grad:
                params[owned[id(leaf)]] = leaf
    trained = {id(p) for p in params.values()}
    for name, module in pair.modules.items():
        own = [p for p in module.parameters() if p.requires_grad]
        if own and not any(id(p) in trained for p in own):
            warnings.warn(
                f"the parameters of {name!r}, a {type(module).__name__}, are not trained: register it with "
                "pyro.module, or freeze it with requires_grad_(False)",
                stacklevel=2,
            )
    return params, bare
