"""The service: an ensemble over HTTP. It knows nothing of weights; ``ensemble`` knows nothing of HTTP."""
