"""Dependencies: serve imports neither torch nor train, and only the modules of model that need no torch."""

import subprocess
import sys

import pytest

from train.paths import ROOT

IMPORT_ALL = """
import pkgutil, sys
import serve
for module in pkgutil.iter_modules(serve.__path__, "serve."):
    if "conf" not in module.name or module.name == "serve.config":
        __import__(module.name)
print(*sys.modules)
"""


def test_no_module_of_serve_imports_torch_or_train():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    imported = {name.partition(".")[0] for name in modules}
    assert {"serve", "onnxruntime", "flask"} <= imported
    assert not imported & {"torch", "torchvision", "train", "onnx", "ray", "matplotlib", "tests"}
    shared = {"model.contract", "model.cores"}  # the modules that Dockerfile.serve copies
    assert {name for name in modules if name.startswith("model.")} == shared


def test_modules_shared_by_train_and_serve_need_only_the_standard_library():
    code = "import sys; import model.contract, model.cores; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"model", "__main__"} | sys.stdlib_module_names


def test_gunicorn_s_master_does_not_import_the_workers_libraries():
    """Before gevent has patched the standard library, they would get unpatched locks; threads are lost in a fork."""
    code = "import sys; import serve.wsgi, serve.logs; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"prometheus_client", "werkzeug", "flask", "numpy", "onnxruntime"}


@pytest.mark.slow
def test_the_serving_requirements_are_sufficient(tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        venv / "bin" / "python",
        "install",
        "--no-compile",
        "--quiet",
        "--require-hashes",
        "--disable-pip-version-check",
    ]
    subprocess.run([*pip, "-r", ROOT / "requirements" / "serve.txt"], check=True)
    code = """
from serve.app import create_app
answer = create_app().test_client().post("/predict", data=open("docs/seven.png", "rb").read(), content_type="image/png")
print(answer.json["predictions"][0]["digit"])
"""
    done = subprocess.run([venv / "bin" / "python", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"
