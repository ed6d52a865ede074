"""What N members cost: a loop over modules, other ways to run them, this library, and the limit of the machine.

python -m benchmarks.speed
"""
