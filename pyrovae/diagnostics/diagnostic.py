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
        data: held out, all of them.
        size: how many of them to ask about, or of whatever the diagnostic's option counts.
        num_seeds: fits of this strategy.
        seed: of all that is drawn.
        device: None means CUDA where there is one.
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
        """``size`` of the data, taken at random: the same for every fit."""
        return self.data.numbered(assumed=True).sampled(self.size, self.seed)

    @property
    def options(self) -> dict[str, Any]:
        """The keywords that all questions share, as a comparison has them."""
        return {"seed": self.seed, "device": self.device, "progress": self.progress}


class Diagnostic(ABC):
    """One question, asked of every fit of a comparison: each strategy's, each seed's.

    A subclass is made known by :func:`register`. It is then asked by :func:`pyrovae.compare` (``ask=[name]``) and by
    the command ``compare``, has a section of the page, and is listed by ``pyrovae list``.

    Attributes:
        name: by which it is asked for.
        title: of its section of the page.
        text: what the section says of its table.
        option: of the command line, a number: of observations, or of what else it takes; 0 leaves the question out.
        default: of the option.
        help: of the option.
        needs: what must be there for it to be asked, some of "labels" and "pictures" (of the data), "scoring" (a guide
            that can score a z that it did not draw) and "seeds" (several).
        captions: of the figures, by their names.
        rank: sections are ordered by it.
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
        """Return what is to be known of a fit.

        Raises:
            ValueError: in one sentence, for a pair that it cannot be asked of; the sentence is shown in its place.
        """

    def columns(self, answers: Sequence[Any]) -> dict[str, float]:
        """Return columns of the comparison for a strategy, from the answers of its seeds."""
        return {}

    def table(self, answers: Mapping[str, Any]) -> pd.DataFrame | None:
        """Return the section's table, one row per fit, from the answers by the fits' names."""
        return None

    def figures(self, answers: Mapping[str, Any]) -> "dict[str, Figure]":
        """Return the section's figures by name, from answers of each strategy's first fit, the best strategy first."""
        return {}

    def notes(self, answers: Mapping[str, Any]) -> str:
        """Return what the section says of these answers beside its text."""
        return ""

    def caption(self, figure: str) -> str:
        """Return what a figure shows."""
        return self.captions.get(figure, self.title)

    def check(self, size: int) -> int:
        """Return the value of the option.

        Raises:
            ValueError: naming what was got and what was expected.
        """
        return at_least(self.option, size, 0)

    def lacks(self, data: Data, num_seeds: int) -> str:
        """Return what the data and the seeds lack of what the question needs, or ""."""
        missing = {
            "labels": data.labels is None,
            "pictures": data.image_shape is None,
            "seeds": num_seeds < 2,
        }
        return next((need for need in self.needs if missing.get(need)), "")

    def answer(self, fitted: Fitted) -> Any:
        """Ask, once what is needed of the guide is seen to be there."""
        if "scoring" in self.needs:
            with ask(*fitted.pair, fitted.data, seed=fitted.seed, device=fitted.device) as question:
                refuse_unscored(question)
        return self.ask(fitted)


_REGISTRY: dict[str, Diagnostic] = {}


def register(diagnostic: type[Diagnostic]) -> type[Diagnostic]:
    """Make a diagnostic known, as a decorator of its class; one of the same name of another class is refused.

    Raises:
        ValueError: for what is no diagnostic, lacks a name, a title or an option, or has the name of another.
    """
    if not (isinstance(diagnostic, type) and issubclass(diagnostic, Diagnostic)):
        raise ValueError(f"register takes a subclass of Diagnostic, got {shown(diagnostic)}")
    lacking = [part for part in ("name", "title", "option") if not isinstance(getattr(diagnostic, part, None), str)]
    unknown = [need for need in diagnostic.needs if need not in NEEDS]
    if lacking or unknown:
        what = f"has no {lacking[0]}" if lacking else f"needs {unknown[0]!r}, which is none of {', '.join(NEEDS)}"
        raise ValueError(f"the diagnostic {diagnostic.__name__} {what}: give its class that attribute")
    known = _REGISTRY.get(diagnostic.name)
    if known is not None and type(known).__qualname__ != diagnostic.__qualname__:
        raise ValueError(f"there is a diagnostic named {diagnostic.name!r} already: give this one another name")
    _REGISTRY[diagnostic.name] = diagnostic()
    return diagnostic


def diagnostics() -> dict[str, Diagnostic]:
    """Return every diagnostic that is known, by name, in the order of their sections.

    Those of pyrovae are the files of ``pyrovae/diagnostics/questions``.
    """
    package = importlib.import_module("pyrovae.diagnostics.questions")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_REGISTRY.items(), key=lambda item: item[1].rank))


def chosen(ask: Any) -> dict[str, int | None]:
    """Return which diagnostics are asked for, and of how many: a name, several, or numbers by name.

    Raises:
        ValueError: for a name that is not known.
    """
    asked: dict[str, int | None] = dict(ask) if isinstance(ask, Mapping) else dict.fromkeys(_listed(ask))
    known = diagnostics()
    for name in asked:
        if name not in known:
            raise ValueError(
                f"there is no diagnostic {name!r}: known are {', '.join(known)}; make yours known by register"
            )
    return asked


def _listed(ask: Any) -> list[str]:
    return [ask] if isinstance(ask, str) else list(ask)
