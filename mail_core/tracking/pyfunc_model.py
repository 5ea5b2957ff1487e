"""A package behind MLflow's `pyfunc`: MLflow copies this file into a version and runs it when that is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from mail_core.package.store import load_package


class PackagedModel(PythonModel):
    """CTR of raw rows; all of it is the package's."""

    def load_context(self, context: Any) -> None:
        """Load the package that lies among the version's artifacts."""
        self.package = load_package(Path(context.artifacts["package"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:
        """(B,) float64 CTR of the frame's rows, in their order."""
        return self.package.predict_frame(model_input)


set_model(PackagedModel())
