"""A few gradient steps on the caller's own examples, for all members and many tasks in one call."""
