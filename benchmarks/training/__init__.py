"""How fast members are fine-tuned: together, and one after the other."""
