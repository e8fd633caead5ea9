"""Stochastic variational inference for any pair."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch

from pyrovae.common.checks import at_least, flag, not_negative, writable_folder
from pyrovae.data import training_data
from pyrovae.objectives import Objective
from pyrovae.programs.compilation import check_mode
from pyrovae.programs.isolation import default_dtype, isolated, seed_streams
from pyrovae.programs.streams import check_seed
from pyrovae.programs.types import Program
from pyrovae.saving import lock
from pyrovae.training import storage
from pyrovae.training.batches import Batches
from pyrovae.training.callbacks import Callbacks, ProgressBar, checked
from pyrovae.training.checkpoints import restore, save
from pyrovae.training.compiling import Compiler
from pyrovae.training.errors import FitError, FitInterrupted
from pyrovae.training.failures import Watch
from pyrovae.training.fitting import Fitting, Position
from pyrovae.training.group import Group, LostProcess
from pyrovae.training.history import History
from pyrovae.training.interrupt import Interrupts
from pyrovae.training.jitted import said_of
from pyrovae.training.loop import Plan, run
from pyrovae.training.optimizers import DEFAULT_LR, Optimization, stepper_of
from pyrovae.training.problem import Placed, place, read_problem
from pyrovae.training.result import Fit, carrying
from pyrovae.training.settings import settings

DEFAULT_EPOCHS = 100


def fit(
    model: Program,
    guide: Program,
    data: Any,
    *,
    objective: Any = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float | Callable[[int], float] = DEFAULT_LR,
    optimizer: Any = None,
    validation_data: Any = None,
    patience: int | None = None,
    clip_norm: float | None = None,
    drop_last: bool = False,
    least_batch: int = 1,
    scheduler: Any = None,
    scheduler_every: str = "epoch",
    compile: bool | str = "auto",
    precision: str = "float32",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    resume: bool = False,
    callback: Any = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Fit:
    """Fit a pair by stochastic variational inference; modules are trained in place.

    Modules stay in the mode, train or eval, that they are in. All evaluation runs in eval mode.

    In an initialised default group of ``torch.distributed`` every process calls this with the same arguments. Each
    process takes its share of every batch, and the gradients are added up. An observation has the noise that it would
    have in a single process, so the result is that of a single process, up to rounding. There are two exceptions. Draws
    from a distribution that is computed (a gamma, a Poisson) come from a stream of the process's own. Whatever compares
    the observations of a batch (batch statistics, regularisers of the aggregate posterior) sees one share alone. The
    first process writes the checkpoint, which any number of processes can resume.

    Source: Hoffman, Blei, Wang and Paisley, "Stochastic variational inference", 2013; Kingma and Welling, 2014.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        objective: any ``pyro.infer.ELBO``; None means ``Trace_ELBO()``. A jitted one (``JitTrace_ELBO``) runs as the
            objective that it jits, with the same settings: a fit compiles its steps itself.
        epochs: passes over the data; 100 when neither epochs nor steps are given.
        steps: gradient steps, instead of epochs.
        batch_size: number of observations in a step; the last batch of an epoch holds the remaining ones.
        lr: learning rate, or a function of the step (from 0) that returns it.
        optimizer: None (Adam), a class of ``torch.optim``, a function of the parameters that returns an optimizer, an
            optimizer, or a ``pyro.optim.PyroOptim``. With the last, Pyro's own ``SVI`` takes the steps, and Pyro's
            schedulers step after every epoch: ``ReduceLROnPlateau`` by minus the validation bound, or, without
            validation data, by the mean of the epoch's losses.
        validation_data: held-out data on which the bound is evaluated after every epoch, with one particle per
            observation and the same noise each time.
        patience: stop after this many epochs without a better validation bound, and go back to the best state.
        clip_norm: largest global norm of the gradient of the summed loss.
        drop_last: whether the last batch of an epoch is left out where it is smaller than the others. Every epoch has
            an order of its own, so that no observation is left out for good.
        least_batch: smallest size of a last batch; a smaller one is left out, as for batch statistics, which one
            observation does not have.
        scheduler: a function of the optimizer that returns a scheduler of ``torch.optim.lr_scheduler``, such as
            ``lambda optimizer: ReduceLROnPlateau(optimizer, patience=5)``. ``ReduceLROnPlateau`` goes by minus the
            validation bound, or, without validation data, by the mean of the epoch's losses.
        scheduler_every: "epoch" or "step": when the scheduler steps.
        compile: whether a step is traced once per batch size and compiled. "auto" compiles where that saves more time
            than it costs, which it decides from the counted work of a step and the number of steps
            (:class:`pyrovae.programs.compilation.Work`). Both ways draw the same random numbers; they differ by
            rounding, which grows as a fit goes on. A checkpoint keeps the choice. Programs that cannot be compiled run
            eagerly: :attr:`Fit.compile` says which way the steps ran, and :attr:`Fit.compiled` says why.
        precision: "float64" casts modules and data to double. "float32" leaves the modules' own dtype. "bfloat16"
            leaves it too, but the layers of networks multiply matrices in bfloat16; everything else stays in the
            modules' dtype: parameters, densities, and the evaluation on validation data.
        checkpoint: folder in which to save the fit while it runs.
        checkpoint_seconds: least time between two checkpoints; one is always written at the end.
        resume: continue from the checkpoint, to the same result (bit for bit on the CPU) as without the interruption;
            a new fit starts where the folder holds none.
        callback: an object, or several in a list, with any of the methods ``on_step``, ``on_validation``,
            ``on_checkpoint`` and ``on_end``. They are called with a :class:`~pyrovae.training.Step`, a
            :class:`~pyrovae.training.Validated`, a :class:`~pyrovae.training.Saved` and the :class:`Fit`. In the first
            two, ``event.stop("reason")`` asks the fit to stop. The history and the progress bar are such callbacks too.
        seed: seed of the parameters that the programs declare, the batches and the noise.
        device: device to fit on; None means CUDA where there is one.
        progress: whether to show a progress bar.

    Returns:
        The fitted pair and its history.

    Example:
        >>> from pyrovae import guides, models, nn
        >>> model, guide = models.LinearGaussian(2, 5), guides.FullRank(nn.MLP(5, 16), 2)
        >>> fitted = fit(model, guide, torch.randn(100, 5), epochs=2, progress=False)
        >>> list(fitted.history.columns)[:5]
        ['step', 'epoch', 'seconds', 'loss', 'bound']

    Raises:
        ValueError: for bad arguments, bad data, a pair that breaks the contract or a checkpoint of another fit.
        FitError: when the loss or its gradient is not finite or a program fails on a batch; its ``fit`` holds the last
            good state.
        FitInterrupted: (a KeyboardInterrupt) on SIGINT, SIGTERM or SIGHUP, after saving.
    """
    callbacks, group = checked(callback), Group()
    with ExitStack() as stack:
        with group.together() as common:
            data = training_data(data, model, guide)
            least = _least(batch_size, drop_last, least_batch)
            plan = _plan(
                Batches(data, int(batch_size), 0, group, least).per_epoch, epochs, steps, patience, validation_data,
                checkpoint, checkpoint_seconds, resume,
            )  # fmt: skip
            optimization = Optimization.checked(optimizer, lr, clip_norm, scheduler, scheduler_every)
            check_mode(compile)
            check_seed(seed)
            _check_objective(objective)
            if plan.checkpoint is not None and not group.rank:
                stack.enter_context(lock(plan.checkpoint))
            placed = place(model, guide, data, validation_data, device=device, precision=precision)
            stack.enter_context(_isolated(placed, seed))
            batches = Batches(placed.data, int(batch_size), seed, group, least)
            fitting = _prepared(placed, batches, objective, optimization, compile, plan.total, progress)
            if plan.checkpoint is not None or group.size > 1:
                plan = replace(plan, settings=settings(fitting, optimization, precision))
            common.update(
                plan.settings, steps=plan.total, patience=plan.patience, compile=compile,
                checkpoint=plan.checkpoint is not None,
            )  # fmt: skip
            if resume and plan.checkpoint is not None and storage.holds_fit(plan.checkpoint):
                _go_on(fitting, plan)
        if group.size > 1:
            fitting.keep()
        bar = stack.enter_context(closing(ProgressBar(plan.total, fitting.position.step, progress)))
        return _run(fitting, plan, Callbacks([fitting.history, Watch(fitting), *callbacks, bar]))


def _least(batch_size: Any, drop_last: Any, least_batch: Any) -> int:
    """Check the sizes of batches, and return the smallest size of a last one."""
    at_least("batch_size", batch_size, 1)
    return int(batch_size) if flag("drop_last", drop_last) else at_least("least_batch", least_batch, 1)


def _plan(
    per_epoch: int, epochs: int | None, steps: int | None, patience: int | None, validation_data: Any,
    checkpoint: str | Path | None, checkpoint_seconds: float, resume: bool,
) -> Plan:  # fmt: skip
    """Check the numbers of a fit.

    Raises:
        ValueError: naming what was got and what was expected.
    """
    total = _total_steps(per_epoch, epochs, steps)
    if patience is not None:
        patience = at_least("patience", patience, 1)
        if validation_data is None:
            raise ValueError("patience needs validation_data, by whose bound the best state is chosen")
    seconds = not_negative("checkpoint_seconds", checkpoint_seconds)
    if checkpoint is None and resume:
        raise ValueError("resume=True needs a checkpoint folder to continue from")
    return Plan(total, patience, None if checkpoint is None else writable_folder(checkpoint), seconds)


def _total_steps(per_epoch: int, epochs: int | None, steps: int | None) -> int:
    if epochs is not None and steps is not None:
        raise ValueError("give epochs or steps, not both")
    if steps is not None:
        return at_least("steps", steps, 1)
    return at_least("epochs", DEFAULT_EPOCHS if epochs is None else epochs, 1) * per_epoch


def _check_objective(objective: Any) -> None:
    if isinstance(objective, type):
        raise ValueError(f"objective must be an instance, such as {objective.__name__}(), got the class itself")
    if objective is not None and not callable(getattr(objective, "loss_and_grads", None)):
        raise ValueError(f"objective must be a pyro.infer.ELBO, such as Trace_ELBO(), got {objective!r}")


@contextmanager
def _isolated(placed: Placed, seed: int) -> Iterator[None]:
    """Restore all global state after the block; inside it, functions declare parameters in the precision's dtype."""
    dtype = nullcontext() if placed.dtype is None else default_dtype(placed.dtype)
    block = isolated(purpose="fit", seed=seed, device=placed.device, modules=[], training=False, params=placed.store)
    with block, dtype:
        yield


def _prepared(
    placed: Placed, batches: Batches, objective: Any, optimization: Optimization, compile: bool | str, total: int,
    progress: bool,
) -> Fitting:  # fmt: skip
    """Read the problem, and make the parts that take its steps."""
    in_parts = batches.group.size > 1 or batches.per_epoch > 1
    problem = read_problem(placed, objective, batches.batch_size, in_parts=in_parts)
    history = History(list(problem.weights_at(0)))
    for sentence in problem.objective.unfinished(total) if isinstance(problem.objective, Objective) else ():
        warnings.warn(sentence, stacklevel=3)
    position = Position()
    counts = lambda: (total - position.step, batches.num_sizes)  # noqa: E731
    compiler = Compiler(compile, problem.pair, counts, progress, problem.bfloat16)
    compiler.runner.lines += said_of(objective)
    stepper = stepper_of(problem, optimization, compiler, batches.group)
    schedule = optimization.lr if callable(optimization.lr) else None
    fitting = Fitting(problem, batches, compiler, stepper, history, batches.group, schedule, position)
    seed_streams("fit", batches.seed, placed.device)
    fitting.kept.good = fitting.copied()
    return fitting


def _go_on(fitting: Fitting, plan: Plan) -> None:
    """Continue from the checkpoint, and drop its reason to stop unless this call's patience is over."""
    assert plan.checkpoint is not None
    restore(fitting, plan.checkpoint, plan.settings)
    position = fitting.position
    if plan.patience is None or position.epoch - position.best_epoch < plan.patience:
        position.stopped = ""


def _run(fitting: Fitting, plan: Plan, callbacks: Callbacks) -> Fit:
    """Run the loop, and return the fit, or raise an error that holds it."""
    position, group, checkpoint = fitting.position, fitting.group, plan.checkpoint
    with pyro.validation_enabled(False), Interrupts() as interrupts:
        try:
            run(fitting, plan, callbacks, interrupts)
        except FitError as error:
            group.fail(str(error))
            error.fit = _result(fitting, "failed", callbacks)
            if checkpoint is not None and group.size == 1:
                with suppress(ValueError):  # where it cannot be written, the previous checkpoint stays
                    save(fitting, checkpoint, plan.settings, "failed")
            raise
        except LostProcess as error:
            note = f"; the checkpoint in {str(checkpoint)!r} is whole" if checkpoint else ""
            text = f"the fit stopped at step {position.step}: {error}{note}"
            failure = FitError(text, step=position.step, site=None, indices=[])
            failure.fit = _result(fitting, "failed", callbacks)
            raise failure from error
    if interrupts.received is None:
        return _result(fitting, position.stopped or "finished", callbacks)
    name = interrupts.received.name
    where = f"; continue it from {str(checkpoint)!r} with resume=True" if checkpoint else ""
    text = f"{name}: stopped after step {position.step}{where}"
    raise FitInterrupted(text, _result(fitting, name, callbacks), interrupts.received)


def _result(fitting: Fitting, stopped: str, callbacks: Callbacks) -> Fit:
    """Return the fit in its current state, and call the callbacks with it."""
    problem, runner = fitting.problem, fitting.compiler.runner
    for p in problem.params.values():
        p.grad = None
    store = pyro.get_param_store().get_state()
    encoding = problem.data.encoding
    programs = carrying(problem.pair.model, problem.pair.guide, dict(store), {}, encoding)
    compilation, frame = "; ".join(runner.lines), fitting.history.frame()
    fit = Fit(
        *programs,
        frame,
        stopped,
        fitting.position.seconds,
        compilation,
        bool(runner.chosen),
        dict(problem.bare),
        encoding,
    )
    callbacks.on_end(fit)
    return fit
