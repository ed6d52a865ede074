"""Pure ASGI classes, one a file."""

from app.middleware.authentication import Authentication
from app.middleware.body_limit import BodyLimit, Held
from app.middleware.compression import Compression
from app.middleware.direct import Direct
from app.middleware.hosts import Hosts
from app.middleware.inflation import Inflation
from app.middleware.observation import Observation

__all__ = ["Authentication", "BodyLimit", "Compression", "Direct", "Held", "Hosts", "Inflation", "Observation"]
