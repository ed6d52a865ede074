"""The version of the distribution."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("ensembled")
except PackageNotFoundError:
    VERSION = "0+source"
