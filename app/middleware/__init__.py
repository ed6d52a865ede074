"""Pure ASGI classes, one a file."""

from app.middleware.body_limit import BodyLimit
from app.middleware.observation import Observation

__all__ = ["BodyLimit", "Observation"]
