"""The settings of the service, and where they come from."""

from app.settings.loopback import is_loopback
from app.settings.settings import DEVICE, SECRETS, Settings
from app.settings.sources import PREFIX, SettingsError, load, unknown_variables

__all__ = [
    "DEVICE",
    "PREFIX",
    "SECRETS",
    "Settings",
    "SettingsError",
    "is_loopback",
    "load",
    "unknown_variables",
]
