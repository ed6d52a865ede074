"""How good the uncertainty of one net's members is: beside the net itself, Monte-Carlo dropout and deep ensembles.

python -m benchmarks.uncertainty --uci PATH
"""
