"""A question that a comparison asks of every fit: what it needs, its columns, its table, its figures, its option."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch

from pyrovae.common.checks import at_least, shown
from pyrovae.data import Data
from pyrovae.diagnostics.latents.scoring import refuse_unscored
from pyrovae.importance.question import ask
from pyrovae.programs.isolation import importing
from pyrovae.programs.types import Program

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEEDS = ("labels", "pictures", "scoring", "seeds")


@dataclass(frozen=True)
class Fitted:
    """A fitted pair, and the held-out data that a diagnostic may ask about.

    Attributes:
        model: fitted generative program.
        guide: fitted recognition program.
        data: all held-out data.
        size: number of observations to ask about, or of whatever the diagnostic's option counts.
        num_seeds: number of fits of this strategy.
        seed: random seed of all draws.
        device: device to run on; None means CUDA where there is one.
        progress: whether to show progress bars.
    """

    model: Program
    guide: Program
    data: Data
    size: int
    num_seeds: int = 1
    seed: int = 0
    device: torch.device | str | None = None
    progress: bool = True

    @property
    def pair(self) -> tuple[Program, Program]:
        """Model and guide."""
        return self.model, self.guide

    @property
    def some(self) -> Data:
        """A random subset of ``size`` observations, the same for every fit."""
        return self.data.numbered(assumed=True).sampled(self.size, self.seed)

    @property
    def options(self) -> dict[str, Any]:
        """The keywords that all questions share, with the values of the comparison."""
        return {"seed": self.seed, "device": self.device, "progress": self.progress}


class Diagnostic(ABC):
    """One question, asked of every fit of a comparison: of each strategy and each seed.

    :func:`register` registers a subclass. The question is then asked by :func:`pyrovae.compare` (``ask=[name]``) and by
    the command ``compare``, has a section of the page, and is listed by ``pyrovae list``.

    Attributes:
        name: name by which the question is asked for.
        title: title of its section of the page.
        text: explanation of the table in that section.
        option: name of its command-line option. The option is a number, of observations or of whatever else the
            question takes; 0 leaves the question out.
        default: default value of the option.
        help: help text of the option.
        needs: what the question needs, among "labels" and "pictures" (of the data), "scoring" (a guide that can score
            an externally supplied z) and "seeds" (more than one).
        captions: captions of the figures, by the figures' names.
        rank: number by which the sections are ordered.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    text: ClassVar[str] = ""
    option: ClassVar[str]
    default: ClassVar[int] = 1000
    help: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    captions: ClassVar[Mapping[str, str]] = {}
    rank: ClassVar[int] = 100

    @abstractmethod
    def ask(self, fitted: Fitted) -> Any:
        """Return the answer for one fit.

        Raises:
            ValueError: in one sentence, for a pair that the question does not support; the sentence is shown in place
                of the answer.
        """

    def columns(self, answers: Sequence[Any]) -> dict[str, float]:
        """Return the columns that a strategy has in the comparison, from the answers for its seeds."""
        return {}

    def table(self, answers: Mapping[str, Any]) -> pd.DataFrame | None:
        """Return the section's table, one row per fit, from the answers by name of the fit; by default, the columns."""
        rows = {fit: self.columns([answer]) for fit, answer in answers.items()}
        return pd.DataFrame.from_dict(rows, orient="index") if any(rows.values()) else None

    def figures(self, answers: Mapping[str, Any]) -> "dict[str, Figure]":
        """Return the figures by name, from the answers for each strategy's first fit, the best strategy first."""
        return {}

    def notes(self, answers: Mapping[str, Any]) -> str:
        """Return what the section says about these answers in addition to its text."""
        return ""

    def caption(self, figure: str) -> str:
        """Return the caption of a figure."""
        return self.captions.get(figure, self.title)

    def check(self, size: int) -> int:
        """Return the value of the option.

        Raises:
            ValueError: naming the value that was given and what was expected.
        """
        return at_least(self.option, size, 0)

    def lacks(self, data: Data, num_seeds: int) -> str:
        """Return the first need of the question that the data or the seeds do not meet, or ""."""
        missing = {
            "labels": data.labels is None,
            "pictures": data.image_shape is None,
            "seeds": num_seeds < 2,
        }
        return next((need for need in self.needs if missing.get(need)), "")

    def answer(self, fitted: Fitted) -> Any:
        """Check that the guide has what the question needs, then ask."""
        if "scoring" in self.needs:
            with ask(*fitted.pair, fitted.data.unweighted(), seed=fitted.seed, device=fitted.device) as question:
                refuse_unscored(question)
        return self.ask(fitted)


_REGISTRY: dict[str, Diagnostic] = {}


def register(diagnostic: type[Diagnostic]) -> type[Diagnostic]:
    """Register a diagnostic, as a decorator of its class.

    Raises:
        ValueError: for what is not a diagnostic, has no name, title or option, or has the name of a diagnostic of
            another class.
    """
    if not (isinstance(diagnostic, type) and issubclass(diagnostic, Diagnostic)):
        raise ValueError(f"register takes a subclass of Diagnostic, got {shown(diagnostic)}")
    missing = [part for part in ("name", "title", "option") if not isinstance(getattr(diagnostic, part, None), str)]
    unknown = [need for need in diagnostic.needs if need not in NEEDS]
    if missing or unknown:
        what = f"has no {missing[0]}" if missing else f"needs {unknown[0]!r}, which is none of {', '.join(NEEDS)}"
        raise ValueError(f"the diagnostic {diagnostic.__name__} {what}: give its class that attribute")
    other = _REGISTRY.get(diagnostic.name)
    if other is not None and type(other).__qualname__ != diagnostic.__qualname__:
        raise ValueError(f"there is a diagnostic named {diagnostic.name!r} already: give this one another name")
    _REGISTRY[diagnostic.name] = diagnostic()
    return diagnostic


def diagnostics() -> dict[str, Diagnostic]:
    """Return every registered diagnostic by name, in the order of the sections.

    The diagnostics of pyrovae are the files of ``pyrovae/diagnostics/questions``.
    """
    package = importlib.import_module("pyrovae.diagnostics.questions")
    with importing():
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_REGISTRY.items(), key=lambda item: item[1].rank))


def chosen(ask: Any) -> dict[str, int | None]:
    """Return the size of every diagnostic that is asked for, by name; None where only its name is given.

    Args:
        ask: one name, several names, or a mapping of names to sizes.

    Raises:
        ValueError: for a name that is not registered.
    """
    sizes: dict[str, int | None] = dict(ask) if isinstance(ask, Mapping) else dict.fromkeys(_listed(ask))
    available = diagnostics()
    for name in sizes:
        if name not in available:
            raise ValueError(
                f"there is no diagnostic {name!r}: known are {', '.join(available)}; make yours known by register"
            )
    return sizes


def _listed(ask: Any) -> list[str]:
    return [ask] if isinstance(ask, str) else list(ask)
