"""What a room may import: the models need torch alone, encoders and packages no engine."""

from __future__ import annotations

import subprocess
import sys

import pytest

ENGINES = {"pyspark", "delta", "mlflow", "petastorm"}


@pytest.mark.parametrize(("module", "absent"), [
    ("mail_core.models.mail", ENGINES | {"pyarrow", "pandas", "yaml", "sklearn", "safetensors"}),
    ("mail_core.encoding.encode", ENGINES | {"torch", "sklearn"}),
    ("mail_core.package.store", ENGINES | {"sklearn"}),
    ("mail_core.loading.plan", ENGINES | {"torch"}),
    ("mail_core.evaluation.page", ENGINES | {"torch", "sklearn", "matplotlib"}),
    ("mail_core.evaluation.checks", ENGINES | {"torch", "sklearn", "matplotlib"}),
    ("mail_core.training.like", ENGINES | {"sklearn"}),
    ("mail_core.training.run", {"mlflow", "sklearn", "torchmetrics", "matplotlib"}),
    ("mail_core.schema.reader", ENGINES | {"torch"}),
])
def test_a_room_imports_no_more_than_it_may(module, absent):
    code = f"import sys, {module}; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert module.split(".")[0] in done.stdout.split()
    assert not absent & set(done.stdout.split())
