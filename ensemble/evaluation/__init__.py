"""How good an ensemble's predictions are, judged on rows with targets."""
