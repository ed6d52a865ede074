"""The settings of the service, and where they come from."""

from app.settings.loopback import is_loopback, is_own_name
from app.settings.settings import DEVICE, SECRETS, PortName, Settings
from app.settings.sources import PREFIX, SettingsError, load, unknown_variables

__all__ = [
    "DEVICE",
    "PREFIX",
    "SECRETS",
    "PortName",
    "Settings",
    "SettingsError",
    "is_loopback",
    "is_own_name",
    "load",
    "unknown_variables",
]
