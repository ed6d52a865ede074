"""``ensembled key``: a new key, and its line for the service's file of keys."""

from __future__ import annotations

import argparse
import sys

from app.keys import WeakKey, hash_line, make_key

DESCRIPTION = """\
Make a key for the service. The first line printed is the key, for whoever asks the service; the second holds its
SHA-256 and NAME, for the file that --api-keys-file (ENSEMBLED_API_KEYS_FILE) names. The service reads that file again
when it changes, so a key is given or taken away without a restart. The key itself is kept nowhere."""

EPILOG = """\
examples:
  ensembled key alice
  ensembled key alice | tee >(tail -1 >> keys) | head -1
  ENSEMBLED_API_KEY=$(ensembled key | head -1) ensembled serve --models models
  ensembled key --stdin alice < alice.key >> keys"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="whose key it is; shown in the file only")
    parser.add_argument("--stdin", action="store_true", help="read a key from standard input and print its line alone")


def main(args: argparse.Namespace) -> int:
    """Make a key; 2 if the name or the given key cannot be used."""
    key = sys.stdin.readline().strip() if args.stdin else make_key()
    try:
        line = hash_line(key, args.name)
    except (WeakKey, ValueError) as error:
        print(f"ensembled key: {error}", file=sys.stderr)
        return 2
    print(line if args.stdin else f"{key}\n{line}")
    return 0
