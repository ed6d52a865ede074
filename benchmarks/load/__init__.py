"""This service beside those that one would write or take instead: same members, same clients, one machine, one run."""
