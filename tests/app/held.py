"""`ensembled serve`, whose loads and calls can be held by files, so that "is loading" and "is busy" are no races.

Run as a program: `python held.py GATE serve ...`. While GATE/load-NAME is there, the model NAME is being loaded; while
GATE/hold is there, the call that runs does not end, and GATE/held says how many rows it has. Nothing else differs from
`ensembled`.
"""

import sys
import time
from pathlib import Path

from app import served
from app.cli import main


def hold(gate: Path) -> None:
    load, compute = served.load, served.Served.compute

    def held_load(name, *args, progress, **rest):
        while (gate / f"load-{name}").exists():
            progress("waiting for the test", 0.5)
            time.sleep(0.01)
        return load(name, *args, progress=progress, **rest)

    def held_compute(self, call):
        if (gate / "hold").exists():
            (gate / "held").write_text(str(call.rows))
            while (gate / "hold").exists():
                time.sleep(0.002)
            (gate / "held").unlink()
        return compute(self, call)

    served.load, served.Served.compute = held_load, held_compute


if __name__ == "__main__":
    hold(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
