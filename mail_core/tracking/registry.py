"""Model versions in MLflow's registry: a package goes in with the code that serves it, and comes out without any."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Mapping

import mlflow
import pyarrow as pa
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType
from mlflow.types import Schema as MlflowSchema
from mlflow.types import TensorSpec
from mlflow.types.schema import AnyType, Array

from mail_core.errors import InputError
from mail_core.package.store import load_package
from mail_core.schema.arrow import input_schema
from mail_core.schema.definition import Schema
from mail_core.tracking.descriptions import version_description
from mail_core.tracking.runs import or_none, run_seconds

PACKAGE_ARTIFACT = "package"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pyarrow", "pyyaml", "safetensors", "torch")
"""What scoring imports; a version pins them to what it was made with."""
MAIL_CORE = Path(__file__).resolve().parents[1]
_LOGGED_NAME = "model"
_NAME = re.compile(r"[^/:@\s]+")
_MODEL_URI = re.compile(r"models:/(?P<name>[^/:@\s]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """One version, fixed: an alias that moves later does not move this."""

    name: str
    version: str
    package_folder: Path
    """Local; read by `mail_core.package.store.load_package`."""
    run_id: str | None = None
    """Of the run that registered it, if one did."""

    @property
    def uri(self) -> str:
        """models:/NAME/VERSION."""
        return f"models:/{self.name}/{self.version}"

    @property
    def title(self) -> str:
        """For tables and logs."""
        return f"{self.name} version {self.version}"


def register_package(package_folder: Path | str, name: str, alias: str | None = None,
                     tags: Mapping[str, str] | None = None) -> str:
    """Register a package folder as a new version of `name`, in the active run if there is one, and return the version.

    A run registers one version of a name: where the active one, killed since and gone on with, has done so, this is it.
    It is registered as models-from-code (the source of `mail_core` goes along), so nothing in it is pickled.
    `configure_tracking` comes first.

    Raises:
        InputError: not a package, or not a name for a model.
    """
    package, client = load_package(package_folder), MlflowClient()
    version = _version_of_active_run(validated_model_name(name))
    if version is None:
        info = mlflow.pyfunc.log_model(
            name=_LOGGED_NAME, registered_model_name=name,
            python_model=str(MAIL_CORE / "tracking" / "pyfunc_model.py"), code_paths=[str(MAIL_CORE)],
            artifacts={PACKAGE_ARTIFACT: str(package_folder)}, pip_requirements=requirements(),
            signature=signature(package.schema), input_example=package.input_example.to_pandas())
        version = str(info.registered_model_version)
    # The version is there from here on, so that a run killed between these lines does the rest when it goes on.
    client.update_model_version(name, version, description=version_description(package.lineage, package.metrics))
    for key, value in (tags or {}).items():
        client.set_model_version_tag(name, version, key, value)
    if alias:
        client.set_registered_model_alias(name, alias, version)
    return version


def _version_of_active_run(name: str) -> str | None:
    run = mlflow.active_run()
    if run is None:
        return None
    found = MlflowClient().search_model_versions(f"run_id = '{run.info.run_id}'")
    return next((str(version.version) for version in found if version.name == name), None)


def resolve_model(model_uri: str) -> ResolvedModel:
    """models:/NAME@ALIAS or models:/NAME/VERSION -> the version and its package, fetched without running its code.

    The alias is looked up here, once. `configure_tracking` comes first.

    Raises:
        InputError: another form of URI, no such model, alias or version, or a version that is not a package of MAIL.
    """
    parts = _MODEL_URI.fullmatch(model_uri)
    if parts is None:
        raise InputError(f"model {model_uri!r}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    name, client = parts["name"], MlflowClient()
    try:
        found = (client.get_model_version_by_alias(name, parts["alias"]) if parts["alias"]
                 else client.get_model_version(name, parts["version"]))
        source = client.get_model_version_download_uri(name, found.version).rstrip("/")
        mlmodel = mlflow.artifacts.download_artifacts(artifact_uri=f"{source}/MLmodel")
        folder = mlflow.artifacts.download_artifacts(artifact_uri=f"{source}/{_package_path(mlmodel, model_uri)}")
    except (MlflowException, OSError) as error:
        raise InputError(f"model {model_uri!r}: {getattr(error, 'message', error)}") from error
    return ResolvedModel(name=name, version=str(found.version), package_folder=Path(folder),
                         run_id=found.run_id or None)


def training_seconds(name: str, version: str) -> float | None:
    """How long the run took that registered a version; None where no run did, or either has gone."""
    found = or_none(lambda: MlflowClient().get_model_version(name, version))
    return run_seconds(found.run_id) if found is not None and found.run_id else None


def is_package(model_uri: str) -> bool:
    """Whether this project registered the version at models:/NAME/VERSION; others may share the store.

    Raises:
        InputError: no such version, or its files cannot be read.
    """
    try:
        mlmodel = mlflow.artifacts.download_artifacts(artifact_uri=f"{model_uri}/MLmodel")
    except (MlflowException, OSError) as error:
        raise InputError(f"model {model_uri!r}: {getattr(error, 'message', error)}") from error
    flavor = yaml.safe_load(Path(mlmodel).read_text(encoding="utf-8"))["flavors"].get("python_function", {})
    return PACKAGE_ARTIFACT in (flavor.get("artifacts") or {})


def validated_model_name(name: str) -> str:
    """`name` where a model can be called so; InputError otherwise."""
    if not _NAME.fullmatch(name):
        raise InputError(f"model name {name!r}: expected a name without '/', ':', '@' and white space")
    return name


def requirements() -> list[str]:
    """REQUIREMENTS pinned to the installed versions (without a build's local part: the index has none of those)."""
    return [f"{package}=={installed_version(package).split('+')[0]}" for package in REQUIREMENTS]


def signature(schema: Schema) -> ModelSignature:
    """What the version takes and gives, as MLflow checks it.

    pandas has no NULL among integers: a column with some arrives as floats, which MLflow's `long` refuses. So only
    columns that are never NULL have an integer type here; the others, and what lists hold, the package checks itself.
    """
    keys = {f.name for f in schema.features if f.column in (schema.users.key, schema.items.key)}
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(_column_type(field.type, never_null=field.name in keys), name=field.name)
        for field in input_schema(schema)]
    return ModelSignature(inputs=MlflowSchema(columns), outputs=MlflowSchema([ColSpec(DataType.double, name="ctr")]))


def _column_type(kind: pa.DataType, never_null: bool) -> DataType | Array | AnyType:
    if pa.types.is_list(kind):
        return Array(AnyType())
    if pa.types.is_string(kind):
        return DataType.string
    if pa.types.is_floating(kind):
        return DataType.double
    return (DataType.long if pa.types.is_int64(kind) else DataType.integer) if never_null else AnyType()


def _package_path(mlmodel: str, model_uri: str) -> str:
    flavor = yaml.safe_load(Path(mlmodel).read_text(encoding="utf-8"))["flavors"]
    try:
        return flavor["python_function"]["artifacts"][PACKAGE_ARTIFACT]["path"]
    except (KeyError, TypeError) as error:
        raise InputError(f"model {model_uri!r}: it was not registered by this project (no artifact "
                         f"{PACKAGE_ARTIFACT!r} in it)") from error
