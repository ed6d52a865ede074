"""Requests that adapt a model to examples which they bring: what they may ask, how they are computed, what is kept."""

from app.adaptation.adaptation import Adaptation
from app.adaptation.adapter import Adapter
from app.adaptation.kept import Kept

__all__ = ["Adaptation", "Adapter", "Kept"]
