"""Members that a request brings: of another recipe or seed, or with weights of its own."""
