"""Dependencies: serve imports neither torch nor train, and only the modules of model that need no torch."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions

from train.paths import ROOT

SHARED = {"model.contract", "model.cores", "model.version"}  # the modules that Dockerfile.serve copies
IMPORT_ALL = """
import pkgutil, sys
import serve
for module in pkgutil.walk_packages(serve.__path__, "serve."):
    __import__(module.name)
print(*sys.modules)
"""


def test_no_module_of_serve_imports_torch_or_train():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    imported = {name.partition(".")[0] for name in modules}
    assert {"serve", "onnxruntime", "flask"} <= imported
    assert not imported & {"torch", "torchvision", "train", "onnx", "ray", "matplotlib", "tests"}
    assert {name for name in modules if name.startswith("model.")} == SHARED


def test_gunicorn_s_master_does_not_import_the_workers_libraries():
    """Before gevent has patched the standard library, they would get unpatched locks; threads are lost in a fork."""
    code = "import sys; import serve.server.master; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"prometheus_client", "werkzeug", "flask", "numpy", "onnxruntime"}


def test_the_serving_requirements_have_what_serve_imports():
    files = [*(ROOT / "serve").rglob("*.py"), *(ROOT / f"{name.replace('.', '/')}.py" for name in SHARED)]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"model", "serve", "_typeshed"}
    needed = {packages_distributions()[name][0].lower().replace("_", "-") for name in imported}
    requirements = (ROOT / "requirements" / "serve.txt").read_text()
    assert {"flask", "gunicorn", "onnxruntime"} <= needed
    assert needed <= set(re.findall(r"^([\w.-]+)==", requirements, re.MULTILINE))
