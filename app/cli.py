"""``ensembled``: one command, its subcommands each in a module of its own.

Only the module of the command that was asked for is imported, so that ``ensembled loadtest`` and every ``--help`` start
without PyTorch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from app.version import VERSION

_COMMANDS = {
    "serve": ("app.commands.serve", "serve a directory of models over HTTP"),
    "build": ("app.commands.build", "make an ensemble from a trained model and save it"),
    "inspect": ("app.commands.inspect", "show what a saved ensemble is, and whether it is intact"),
    "evaluate": ("app.commands.evaluate", "judge a saved ensemble and its uncertainty on rows with targets"),
    "predict": ("app.commands.predict", "ask a saved ensemble or a running service"),
    "key": ("app.commands.key", "make a key for the service"),
    "loadtest": ("app.loadtest.command", "put a running service under load and measure it"),
}

_DESCRIPTION = "One trained PyTorch model as an ensemble of perturbed members that says how sure it is."
_EPILOG = """\
the whole way:
  ensembled build mymodel.py:trained models/mine/1 --task classification --scale 0.05 --members 128
  ensembled build mymodel.py:trained models/mine/2 --task classification --data held_out.npz
  ensembled inspect models/mine/2
  ensembled evaluate models/mine/2 test.npz
  ensembled serve --models models
  ensembled predict http://127.0.0.1:8000 rows.npy
  ensembled loadtest http://127.0.0.1:8000 --rate 100
  ensembled key

ensembled COMMAND --help explains each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 failed, 2 used wrongly, 130 interrupted,
    141 not read to the end."""
    # PyTorch's threads wait for each other spinning, for milliseconds: on a machine whose cores have other work (the
    # event loop among it) a call then takes hundreds of times longer. A short spin costs nothing where cores are free.
    # Read when PyTorch is imported, so it is said here.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # PyTorch makes this directory when it is imported, by default under a name in /tmp that others could take before.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "ensembled" / "compiled"))
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        "ensembled", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"ensembled {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in _COMMANDS.items():
        # No abbreviations: --api-key would be taken for --api-keys-file.
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        if words[:1] == [name]:
            implementation = importlib.import_module(module)
            implementation.configure(command)
            command.set_defaults(main=implementation.main)
    args = parser.parse_args(words)
    try:
        status: int = args.main(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever reads has read enough, as `head` does. Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
