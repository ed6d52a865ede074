"""How many support sets a second are adapted to: together, and one after the other."""
