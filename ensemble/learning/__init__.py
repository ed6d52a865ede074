"""What recipes solve from data in closed form: layers and their inputs, least squares, posteriors, snapshots."""
