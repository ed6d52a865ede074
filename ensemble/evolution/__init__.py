"""Populations for evolution strategies: a step needs seeds and scores, and no gradient."""
