"""A model version as a folder: everything that scoring needs, and nothing that is ever unpickled.

weights.safetensors, config.json (the model), schema.yaml, encoders/ (Arrow and JSON), lineage.json (where it comes
from), metrics.json, input_example.arrow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping

import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mail_core.encoding.encoders import Encoders
from mail_core.errors import InputError
from mail_core.models.embeddings import EmbeddingLayout
from mail_core.models.mail import MailConfig, MailModel
from mail_core.package.example import example_rows
from mail_core.package.inputs import conform
from mail_core.package.scoring import Package
from mail_core.schema.arrow import input_schema
from mail_core.schema.reader import parse_schema

WEIGHTS, CONFIG, SCHEMA, ENCODERS = "weights.safetensors", "config.json", "schema.yaml", "encoders"
LINEAGE, METRICS, EXAMPLE = "lineage.json", "metrics.json", "input_example.arrow"
FORMAT = 1
"""Of the folder; a reader refuses any other."""
NEW_USERS = "new_users"
"""The key of the lineage that every version has: the mode of its export, as `NewUserMode` writes it."""
WARM_START = "warm_start"
"""The key of the lineage of a version that was not trained from scratch: which one it started from, on which days."""


def save_package(folder: Path | str, *, model: MailModel, encoders: Encoders, lineage: Mapping[str, Any],
                 metrics: Mapping[str, Any], input_example: pa.Table | None = None) -> Path:
    """Write a package to `folder`, which is new or empty.

    Args:
        lineage: a JSON document: where the version comes from (Delta versions, export, seed, code commit); `new_users`
            is the mode of its export.
        metrics: a JSON document, as the training run measured them.
        input_example: raw rows; None: rows made of the encoders' own most frequent values.

    Raises:
        InputError: the folder has files, or the example does not fit the schema.
    """
    assert NEW_USERS in lineage, f"the lineage has no {NEW_USERS!r}"
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: expected a new or empty folder for a model version")
    folder.mkdir(parents=True, exist_ok=True)
    example = example_rows(encoders) if input_example is None else conform(input_example, input_schema(encoders.schema))
    encoders.save(str(folder / ENCODERS))
    (folder / SCHEMA).write_text(encoders.schema.text, encoding="utf-8")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    for name, document in ((CONFIG, {"format": FORMAT, "model": model.config.to_dict()}), (LINEAGE, dict(lineage)),
                           (METRICS, dict(metrics))):
        (folder / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    with pa.OSFile(str(folder / EXAMPLE), "wb") as sink, pa.ipc.new_file(sink, example.schema) as writer:
        writer.write_table(example)
    return folder


def load_package(folder: Path | str, device: torch.device | str = "cpu") -> Package:
    """Read what `save_package` wrote; the model is in eval mode, float32, on `device`.

    Raises:
        InputError: a file is missing, damaged, of another format or one that no package has.
    """
    folder = Path(folder)
    _check_files(folder)
    schema = parse_schema(_text(folder / SCHEMA), str(folder / SCHEMA))
    encoders = Encoders.load(str(folder / ENCODERS), schema)
    config = _model_config(folder / CONFIG)
    return Package(schema=schema, encoders=encoders, config=config,
                   model=_model(folder / WEIGHTS, config, encoders, device),
                   lineage=_document(folder / LINEAGE, NEW_USERS), metrics=_document(folder / METRICS),
                   input_example=_example(folder / EXAMPLE))


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected a model version's package")
    expected = {WEIGHTS, CONFIG, SCHEMA, ENCODERS, LINEAGE, METRICS, EXAMPLE}
    found = {path.name for path in folder.iterdir()}
    for name in sorted(expected - found):
        raise InputError(f"{folder / name}: missing from the model version's package")
    odd = sorted(found - expected) + sorted(str(path.relative_to(folder)) for path in (folder / ENCODERS).iterdir()
                                            if path.suffix not in (".arrow", ".json"))
    if odd:
        raise InputError(f"{folder / odd[0]}: not a file of a model version's package, which holds "
                         f"{', '.join(sorted(expected))}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}") from error


def _document(path: Path, *keys: str) -> dict[str, Any]:
    try:
        document = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    for key in keys:
        if not isinstance(document, dict) or key not in document:
            raise InputError(f"{path}: expected a mapping with the key {key!r}")
    return document


def _model_config(path: Path) -> MailConfig:
    document = _document(path, "format", "model")
    if document["format"] != FORMAT:
        raise InputError(f"{path}: format {document['format']!r}, this code reads {FORMAT}")
    try:
        return MailConfig.from_dict(document["model"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _model(path: Path, config: MailConfig, encoders: Encoders, device: torch.device | str) -> MailModel:
    with torch.device("meta"):
        model = MailModel(config, EmbeddingLayout.from_schema(encoders.schema, encoders.vocabulary_sizes))
    try:
        weights = load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(set(expected) | set(weights)):
        found = tuple(weights[name].shape) if name in weights else None
        if found != expected.get(name):
            raise InputError(f"{path}: tensor {name}: shape {found}, the configuration and encoders imply "
                             f"{expected.get(name)}")
    model.load_state_dict(weights, assign=True)
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]), "a tensor without data"
    return model.eval().requires_grad_(False)


def _example(path: Path) -> pa.Table:
    try:
        with pa.OSFile(str(path), "rb") as source:
            return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not an Arrow file: {error}") from error
