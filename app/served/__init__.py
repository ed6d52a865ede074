"""An ensemble as the service sees it, how it is described, and how it is loaded."""

from app.served.arrays import few_digits, to_array, to_tensor
from app.served.loading import load, wrap
from app.served.served import Served, is_out_of_memory
from app.served.specs import DATATYPES, OutputSpec

__all__ = [
    "DATATYPES",
    "OutputSpec",
    "Served",
    "few_digits",
    "is_out_of_memory",
    "load",
    "to_array",
    "to_tensor",
    "wrap",
]
