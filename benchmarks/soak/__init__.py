"""A service under everything that may befall it at once, and whether each request got its one right answer."""
