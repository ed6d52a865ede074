"""Products on thin factors: what a graph becomes where members' weights are factors on a shared tensor."""

from ensemble.structured.factored import LEFT, RIGHT
from ensemble.structured.rewriting import factorable, factored_program, rewrite, structures

__all__ = ["LEFT", "RIGHT", "factorable", "factored_program", "rewrite", "structures"]
