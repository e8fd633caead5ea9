"""Conversion of saved fits of older versions to today's format, one format at a time, so that all of them load."""

from collections.abc import Callable
from typing import Any

FORMAT = 3
Document = dict[str, Any]


def migrated(document: Document) -> Document:
    """Return a document of any format as a document of today's format."""
    for version in range(document["format"], FORMAT):
        document = {**_STEPS[version](document), "format": version + 1}
    return document


def _to_2(document: Document) -> Document:
    """Format 1 had no checksum of the document, and did not keep all settings that a resumed fit must share."""
    if "resume" not in document:
        return document
    return {**document, "resume": {key: value for key, value in document["resume"].items() if key != "settings"}}


def _to_3(document: Document) -> Document:
    """Formats 1 and 2 named classes by their file (``pyrovae.guides.flow.Flow``) or catalogue (``guides.Flow``)."""
    renamed: Document = _renamed(document)
    return renamed


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(part) for part in value]
    if not isinstance(value, dict):
        return value
    parts = {key: _renamed(part) for key, part in value.items()}
    if "class" in value and "arguments" in value:
        names = str(value["class"]).removeprefix("pyrovae.").split(".")
        parts["class"] = f"pyrovae.{names[0]}.{names[-1]}"
    return parts


_STEPS: dict[int, Callable[[Document], Document]] = {1: _to_2, 2: _to_3}
