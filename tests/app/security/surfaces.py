"""What others attacked in servers of models, each with what closes it here.

Every test of this folder begins its docstring with the number of the surface that it attacks.
"""

SURFACES = {
    1: "a model that is loaded from a URL, and management that is open to all",
    2: "a public address without a key, and pages of other sites",
    3: "a list of paths that need a key, with one missing",
    4: "names and versions that lead out of the directory of models",
    5: "pickles in the place of weights",
    6: "pickles in requests",
    7: "bodies without end",
    8: "small bodies that inflate to large ones",
    9: "large heads, and clients that take their time",
    10: "JSON that is deep, and shapes that are huge",
    11: "counts without a bound",
    12: "errors that tell of the machine",
    13: "headers and lines of the log that a client writes",
    14: "labels of metrics that a client writes",
    15: "a container with rights",
    16: "requests that a proxy and the server see differently",
}
