"""Which way of running is fastest on this machine, measured, checked against the loop, and kept."""
