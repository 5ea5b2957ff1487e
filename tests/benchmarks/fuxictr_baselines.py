"""FuxiCTR's DIN, its DCNv2 and an MLP of its layers on given rows, in an environment of their own.

python fuxictr_baselines.py FOLDER MODEL: reads FOLDER/SPLIT.npz and FOLDER/sizes.json; then for each line `SEED RATE`
trains anew and answers with a line of JSON, [validation AUC, AUC on the test day] after each epoch.
"""

from __future__ import annotations

import json
import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Iterator

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from fuxictr_din import SHARED, inputs_of
from model_zoo.LongCTR.DCNv2.DCNv2 import DCNv2
from model_zoo.LongCTR.DIN.DIN import DIN
from sklearn.metrics import roc_auc_score
from torch import nn

BATCH, EVALUATED = 1024, 4096


class Mlp(DCNv2):
    """DCNv2 without its cross layers: pooled behaviour and all fields into one MLP."""

    def __init__(self, features: FeatureMap, hidden: list[int], **settings):
        super().__init__(features, num_cross_layers=0, parallel_dnn_hidden_units=hidden, **settings)
        width = features.sum_emb_out_dim() + self.item_info_dim
        self.crossnet, self.fc = nn.Identity(), nn.Identity()
        self.parallel_dnn = MLP_Block(input_dim=width, output_dim=1, hidden_units=hidden, dropout_rates=0.5,
                                      hidden_activations="LeakyReLU", batch_norm=True)
        self.model_structure = "stacked"  # the branch that hands on one output
        self.stacked_dnn = self.parallel_dnn
        self.compile(settings["optimizer"], settings["loss"], settings["learning_rate"])
        self.reset_parameters()


def model_of(kind: str, document: dict, rate: float) -> nn.Module:
    features = FeatureMap("rows", "")
    for name, size in document["sizes"].items():
        features.features[name] = {"type": "categorical", "source": "item" if name in SHARED else "user",
                                   "vocab_size": size, "padding_idx": 0}
    for name in document["dense"]:
        features.features[name] = {"type": "numeric", "source": "user"}
    features.labels, features.default_emb_dim = ["label"], document["dim"]
    features.num_fields = features.get_num_fields()
    shared = dict(gpu=-1, embedding_dim=document["dim"], dnn_activations="LeakyReLU", net_dropout=0.5, batch_norm=True,
                  learning_rate=rate, optimizer="adam", loss="binary_crossentropy", verbose=0, model_root=".",
                  metrics=["AUC"], task="binary_classification")
    hidden = document["hidden"]
    if kind == "din":
        model = DIN(features, dnn_hidden_units=hidden, attention_hidden_units=document["attention"],
                    attention_hidden_activations="LeakyReLU", **shared)
    elif kind == "dcn_v2":
        model = DCNv2(features, parallel_dnn_hidden_units=hidden, num_cross_layers=document["cross_layers"], **shared)
    else:
        model = Mlp(features, hidden, **shared)
    model._max_gradient_norm, model._batch_index = 10.0, 0
    return model


def batches(rows: dict[str, np.ndarray], size: int, document: dict, order: np.ndarray) -> Iterator[tuple]:
    for first in range(0, len(order), size):
        part = order[first:first + size]
        yield inputs_of({name: column[part] for name, column in rows.items()}, document["sizes"], document["dense"])


@torch.no_grad()
def auc(model: nn.Module, rows: dict[str, np.ndarray], document: dict) -> float:
    model.eval()
    scores = [model.forward(batch)["y_pred"].squeeze(1).numpy()
              for batch in batches(rows, EVALUATED, document, np.arange(len(rows["label"])))]
    model.train()
    return float(roc_auc_score(rows["label"], np.concatenate(scores)))


def main() -> None:
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    document = json.loads((folder / "sizes.json").read_text())
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    train, validation, test = (dict(np.load(folder / f"{split}.npz")) for split in ("train", "validation", "test"))
    print("ready", flush=True)
    for line in sys.stdin:
        seed, rate = int(line.split()[0]), float(line.split()[1])
        torch.manual_seed(seed)
        rng, found = np.random.default_rng(seed), []
        model = model_of(kind, document, rate).train()
        for _ in range(document["epochs"]):
            order = rng.permutation(len(train["label"]))
            for columns, items, mask in batches(train, BATCH, document, order):
                model.train_step((columns, OrderedDict(items), mask))
            found.append([auc(model, validation, document), auc(model, test, document)])
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
