"""The models that are served: what lies in the directory, what is loaded, and how that changes while it serves."""

from app.repository.entries import Entry, State, Table
from app.repository.repository import Repository
from app.repository.scan import RepositoryError, scan
from app.versions import NAME, VERSION

__all__ = ["NAME", "VERSION", "Entry", "Repository", "RepositoryError", "State", "Table", "scan"]
