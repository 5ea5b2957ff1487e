"""FuxiCTR's DIN on given batches, in an environment of its own: one training step for each line read, its seconds out.

python fuxictr_din.py BATCHES.npz SIZES.json THREADS
"""

from __future__ import annotations

import json
import sys
import time
from collections import OrderedDict

import numpy as np
import torch
from fuxictr.features import FeatureMap
from model_zoo.LongCTR.DIN.DIN import DIN

SHARED = ("cate_id", "brand")  # the item's features that behaviours have too
DIM = 32


def model_of(sizes: dict[str, int], dense: list[str]) -> DIN:
    features = FeatureMap("alimama", "")
    for name, size in sizes.items():
        source = "item" if name in SHARED else "user"
        features.features[name] = {"type": "categorical", "source": source, "vocab_size": size, "padding_idx": 0}
    for name in dense:
        features.features[name] = {"type": "numeric", "source": "user"}
    features.labels, features.default_emb_dim = ["label"], DIM
    features.num_fields = features.get_num_fields()
    model = DIN(features, gpu=-1, embedding_dim=DIM, dnn_hidden_units=[512, 256], dnn_activations="LeakyReLU",
                attention_hidden_units=[80, 40], attention_hidden_activations="LeakyReLU", net_dropout=0.5,
                batch_norm=True, learning_rate=1e-3, optimizer="adam", loss="binary_crossentropy", verbose=0,
                model_root="runs/bench", metrics=["AUC"], task="binary_classification")
    model._max_gradient_norm, model._batch_index = 10.0, 0
    return model.train()


def inputs_of(arrays: dict[str, np.ndarray], sizes: dict[str, int], dense: list[str]):
    """FuxiCTR's own form: item features of the behaviours and, last, of the target, in one flat column each."""
    columns = OrderedDict((name, torch.from_numpy(arrays[name])) for name in (*sizes, *dense) if name not in SHARED)
    columns["label"] = torch.from_numpy(arrays["label"])
    items = OrderedDict()
    for name, behavior in zip(SHARED, ("behavior_cate", "behavior_brand")):
        items[name] = torch.from_numpy(np.column_stack([arrays[behavior], arrays[name]]).ravel())
    return columns, items, torch.from_numpy(arrays["behavior_btag"] != 0)


def main() -> None:
    stored, document, threads = np.load(sys.argv[1]), json.load(open(sys.argv[2])), int(sys.argv[3])
    torch.set_num_threads(threads)
    sizes, dense = document["sizes"], document["dense"]
    model = model_of(sizes, dense)
    batches = [inputs_of({n.split("/")[1]: stored[n] for n in stored.files if n.startswith(f"{i}/")}, sizes, dense)
               for i in range(document["batches"])]
    print("ready", flush=True)
    for step, _ in enumerate(sys.stdin):
        columns, items, mask = batches[step % len(batches)]
        batch = (columns, OrderedDict(items), mask)
        start = time.perf_counter()
        model.train_step(batch)
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
