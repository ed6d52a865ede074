"""A real service under good, bad, slow and vanishing clients, reloads, a model that raises, and a full queue.

    python -m benchmarks.soak

At the end every accepted request must have had exactly one answer, right to 1e-4 against the loop over the members of
the version that it names; nothing but 503 and 504 where they belong; memory flat; and exit status 0 after SIGTERM.
Prints what was done and what came of it, and exits with 1 if anything was violated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.soak.running import FailedError, soak
from benchmarks.soak.truth import Truth, build
from benchmarks.speed.worker import isolated


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="of load (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of what is sent, and when (default: 0)")
    parser.add_argument("--compile", action="store_true", help="let the service compile the calls of every version")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep the service's log there")
    args = parser.parse_args(argv)
    if not args.minutes > 0:
        parser.error(f"argument --minutes: must be above 0, however: {args.minutes}")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        saved, place = Path(folder) / "saved", Path(folder) / "service"
        place.mkdir()
        # In a process of its own, whose memory and threads go with it.
        truth: Truth = isolated(build, saved, timeout=300)
        try:
            ledger = soak(truth, place, 60 * args.minutes, seed=args.seed, compile=args.compile)
        except FailedError as error:
            print(f"python -m benchmarks.soak: {error}", file=sys.stderr)
            return 1
        finally:
            if args.log and (place / "log").exists():
                args.log.write_bytes((place / "log").read_bytes())
    print(f"# Soak\n\n{describe()}; {args.minutes:g} minutes, seed {args.seed}.\n\n{ledger.table()}\n")
    print("Nothing was violated." if ledger.clean else f"{ledger.violations.total()} violations.")
    return 0 if ledger.clean else 1


if __name__ == "__main__":
    sys.exit(main())
