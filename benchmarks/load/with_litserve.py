"""LitServe around plain vmap, with its batching.

python -m benchmarks.load.with_litserve models/mlp/1 mlp --port 9001
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import litserve
import torch
from torch import Tensor

from benchmarks.load.members import answer, arguments, load

# Of its own: as many rows as there are clients, and no longer a wait than the shortest call.
MAX_BATCH, BATCH_SECONDS = 32, 0.005


class Predict(litserve.LitAPI):  # type: ignore[misc,unused-ignore]
    """As LitServe's documentation would have it."""

    def __init__(self, path: Path, case: str) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=BATCH_SECONDS)
        self.path, self.case = path, case

    def setup(self, device: str) -> None:
        self.members = load(self.path, self.case, "vmap")

    # Annotations of the request and of the answer would be taken for schemas.
    def decode_request(self, request, **_):  # type: ignore[no-untyped-def]
        return torch.tensor(request["inputs"])

    def batch(self, inputs: list[Tensor]) -> Tensor:
        # Each request has one row.
        return torch.cat(inputs)

    def predict(self, x: Tensor, **_: Any) -> Tensor:
        return self.members.mean(x)

    def unbatch(self, output: Tensor) -> list[Tensor]:
        return list(output.split(1))

    def encode_response(self, output, **_):  # type: ignore[no-untyped-def]
        return answer(output)


def main() -> None:
    args = arguments(__doc__).parse_args()
    server = litserve.LitServer(Predict(args.path, args.case), accelerator="cpu", fast_queue=True)
    server.run(host="127.0.0.1", port=args.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
