"""The model alone on encoded rows in memory, no Spark: a pass for each line read, its seconds out.

python scoring_forward.py PACKAGE FOLDER THREADS PART PARTS once|every CHUNK: virtual behaviour `once` a user, or for
`every` candidate on its whole row. This process takes every PARTS-th block of users, from PART.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mail_core.encoding.encode import encode
from mail_core.package.scoring import Package
from mail_core.package.store import load_package

USERS = 256
"""Of a block."""


def tensors(rows: pa.Table, package: Package) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in encode(rows, package.encoders).items()}


@torch.no_grad()
def main() -> None:
    package_folder, folder, threads, part, parts, work, chunk = sys.argv[1:]
    torch.set_num_threads(int(threads))
    package = load_package(package_folder)
    model, size = package.model, int(chunk)
    users, pairs = (pq.read_table(Path(folder) / f"{name}.parquet") for name in ("users", "pairs"))
    index_B = pairs.column("index").to_numpy()
    blocks = []
    for start in range(int(part) * USERS, users.num_rows, int(parts) * USERS):
        first, last = np.searchsorted(index_B, [start, start + USERS])
        blocks.append((tensors(users.slice(start, USERS), package),
                       tensors(pairs.slice(first, last - first), package),
                       torch.from_numpy(index_B[first:last] - start)))
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        for encoded_U, encoded_B, place_B in blocks:
            found = model.embed_users(encoded_U) if work == "once" else None
            for at in range(0, len(place_B), size):
                place = place_B[at:at + size]
                candidates = {name: values[at:at + size] for name, values in encoded_B.items()}
                if found is not None:
                    model.rank(found, place, candidates)
                else:
                    model({**{name: values[place] for name, values in encoded_U.items()}, **candidates})
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
