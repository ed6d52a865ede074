"""A step of an evolution strategy: this library beside a plain loop over members."""
