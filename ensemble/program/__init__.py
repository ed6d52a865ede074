"""A trained module as a function of its weights: captured, exported, and saved as a list of allowed operations."""
