"""The version of the installed distribution; "unknown" in a checkout that is not installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pyrovae")
except PackageNotFoundError:
    __version__ = "unknown"
