"""An ensemble on disk: a manifest, the graph, and weights as safetensors. Nothing that is read is run as code."""
