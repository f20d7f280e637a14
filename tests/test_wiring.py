"""Makefile, Dockerfiles, compose.yaml, nginx.conf, manifests and CI agree with the code that they build and run."""

import ast
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from msgspec.structs import fields

from model.version import VERSION
from serve.app import create_app
from serve.config import RELEASE, Config
from tests.processes import make
from train.paths import ROOT

DEFAULT = Config()
# Settings passed to a container unchanged. The image sets HOST and PORT; the model's folder is mounted at /model.
SETTINGS = {field.name.upper() for field in fields(Config)} - {"HOST", "PORT", "MODEL_DIR"}
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
NGINX = (ROOT / "docker/nginx/nginx.conf").read_text()


def instructions(dockerfile):
    """Return (instruction, arguments) of every line of a Dockerfile; comments are left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / dockerfile).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]


def seconds(text):
    return int(text.removesuffix("s"))


def directive(name):
    """Return the only value of a directive of nginx.conf, or None if nginx's default applies."""
    values = re.findall(rf"^\s*{name} ([^;]+);", NGINX, re.MULTILINE)
    assert len(values) <= 1
    return values[0] if values else None


@pytest.fixture
def commands(tmp_path):
    """Return a function that creates a program and returns a PATH with this program.

    The program prints its arguments and environment variables as JSON.
    """
    code = f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv, dict(os.environ)]))\n"

    def replace(name):
        (tmp_path / name).write_text(code)
        (tmp_path / name).chmod(0o755)
        return f"{tmp_path}:{os.environ['PATH']}"

    return replace


def run_serve(commands, given=(), **environment):
    """Return the options that `make run-serve` gives `docker run`, and the environment that the container gets."""
    done = make("run-serve", *given, PATH=commands("docker"), **environment)
    (_, *options), environ = json.loads(done.stdout.splitlines()[-1])
    passed = [value.partition("=") for option, value in itertools.pairwise(options) if option == "-e"]
    return options, {name: value or environ[name] for name, _, value in passed}


def test_make_run_serve_passes_every_setting_on(commands):
    values = {name: f"value of {name}" for name in SETTINGS}
    arguments = [f"{name}={value}" for name, value in values.items()]
    assert run_serve(commands, arguments)[1] == run_serve(commands, **values)[1] == values


def test_make_run_serve_takes_a_model_and_a_port_and_leaves_the_rest_to_the_image(commands):
    options, environment = run_serve(commands, HOST="x86_64-conda-linux-gnu", API_KEY="")
    assert environment == {}
    assert ("127.0.0.1:8000:8000" in options, "-v" in options) == (True, False)
    options, environment = run_serve(commands, ["MODEL_DIR=artifacts/release", "PORT=9000"])
    assert environment == {"MODEL_DIR": "/model"}
    assert {f"{ROOT}/artifacts/release:/model:ro", "127.0.0.1:9000:8000"} <= set(options)


def dry_run(*arguments):
    done = make("--dry-run", "--always-make", *arguments)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line, comments=True) for line in done.stdout.replace("\\\n", " ").splitlines()]


def test_make_runs_the_tests_that_the_readme_says():
    parallel = ["-n", "2", "--dist", "loadgroup"]
    for target, options in (
        ("test", [*parallel, "-m", "not images"]),
        ("test-fast", [*parallel, "-m", "not slow and not images"]),
        ("test-images", ["-m", "images"]),
    ):
        (command,) = [words for words in dry_run(target, "ARGS=-x") if "pytest" in words]
        assert command == [".venv/bin/python", "-m", "pytest", *options, "-x"]


def test_make_test_images_builds_what_it_tests_and_run_train_writes_to_artifacts():
    built = {words[words.index("-t") + 1] for words in dry_run("test-images") if words[:2] == ["docker", "build"]}
    assert built == {"train", "serve", "serve-proxy"}
    assert {service["image"] for service in COMPOSE.values() if "build" in service} == built
    *_, command = dry_run("run-train", "ARGS=--models Model_3")
    assert command[:3] == ["docker", "run", "--rm"]
    assert command[-5:] == ["-v", f"{ROOT}/artifacts:/artifacts", "train", "--models", "Model_3"]


def test_make_and_the_images_install_only_what_the_lock_says():
    for target, lock in (("setup", "dev"), ("serve", "serve"), ("bench", "bench")):
        installs = [words for words in dry_run(target) if "install" in words]
        assert any(words[-2:] == ["-r", f"requirements/{lock}.txt"] for words in installs)
        assert all("--require-hashes" in words for words in installs)
    for file in ("Dockerfile.serve", "Dockerfile.train"):
        (install,) = [words for name, words in instructions(file) if name == "RUN" and " install " in words]
        assert "--require-hashes" in install


def test_ci_lints_and_runs_every_test_that_the_readme_names(commands, tmp_path):
    for name in ("make", "docker", "apt-get", "systemctl", "service", "promtool"):
        path = commands(name)
    (tmp_path / "repository/.ci").mkdir(parents=True)
    script = shutil.copy(ROOT / ".ci/run", tmp_path / "repository/.ci")
    done = subprocess.run([script], env={"PATH": path}, capture_output=True, text=True, check=True)
    called = [json.loads(line)[0] for line in done.stdout.splitlines()]
    targets = [words[1:] for name, *words in ((Path(argv[0]).name, *argv) for argv in called) if name == "make"]
    assert sorted(targets[:2]) == [["images"], ["lint"]]  # these two run at the same time
    assert targets[2:] == [["test"], ["test-images"]]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["test"]["steps"][-1] == {"run": ".ci/run"}


def test_the_python_versions_agree():
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    lowest, above = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", required).groups()
    versions = range(int(lowest), int(above))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in versions]
    check = re.search(r"\(3, (\d+)\) <= sys.version_info\[:2\] <= \(3, (\d+)\)", (ROOT / "Makefile").read_text())
    assert [int(minor) for minor in check.groups()] == [versions[0], versions[-1]]
    for file in ("README.md", "Makefile", ".ci/run"):
        stated = re.findall(r"Python (3\.\d+)[–-](3\.\d+)", (ROOT / file).read_text())
        assert stated == [(f"3.{versions[0]}", f"3.{versions[-1]}")], file
    assert f"--python-version 3.{lowest} " in (ROOT / "Makefile").read_text()


def test_the_image_contains_all_that_the_service_needs(tmp_path):
    """Every module of serve is imported from the copied files alone, and the image's health check is answered."""
    for name, arguments in instructions("Dockerfile.serve"):
        if name == "COPY" and "--from" not in arguments:
            *sources, destination = arguments.split()
            for source in sources:
                place = tmp_path / destination.lstrip("/") / (Path(source).name if destination.endswith("/") else "")
                place.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
    (check,) = [words for name, words in instructions("Dockerfile.serve") if name == "HEALTHCHECK"]
    ((method, path),) = re.findall(r"c\.request\('(\w+)', '(/\w+)'\)", check)
    code = f"""
import importlib, pkgutil, serve
for module in pkgutil.walk_packages(serve.__path__, "serve."):
    importlib.import_module(module.name)
from serve.app import create_app
client = create_app().test_client()
paths = "{path}", "/", "/static/page.js", "/openapi.json"
print(*[client.open(path, method="{method}").status_code for path in paths])
"""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "app")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "app", env=environ, capture_output=True, text=True
    )
    assert done.stdout.split() == ["200"] * 4, done.stderr


def test_the_image_listens_where_its_port_is_published():
    serve = dict(instructions("Dockerfile.serve"))
    assert serve["EXPOSE"] == str(DEFAULT.port)
    assert {"HOST=0.0.0.0", f"PORT={DEFAULT.port}"} <= set(serve["ENV"].split())
    assert json.loads(serve["ENTRYPOINT"]) == ["python", "-m", "serve"]
    assert directive("proxy_pass") == f"http://$replicas:{DEFAULT.port}"
    assert directive(r"set \$replicas") in COMPOSE
    listening = directive("listen")
    assert dict(instructions("docker/nginx/Dockerfile"))["EXPOSE"] == listening
    assert COMPOSE["proxy"]["ports"] == [f"127.0.0.1:${{PORT:-{DEFAULT.port}}}:{listening}"]
    (scraped,) = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text())["scrape_configs"]
    (replicas,) = scraped["dns_sd_configs"]
    assert (replicas["port"], set(replicas["names"]) <= set(COMPOSE)) == (DEFAULT.port, True)


def test_compose_passes_every_setting_on():
    environment = COMPOSE["serve"]["environment"]
    assert not {"HOST", "PORT"} & set(environment)  # the image sets HOST and PORT
    for name in SETTINGS:
        assert environment[name] is None or environment[name].startswith(f"${{{name}:-"), "expected the caller's value"


def test_compose_and_nginx_wait_for_a_request_and_take_its_body():
    assert seconds(COMPOSE["serve"]["stop_grace_period"]) > DEFAULT.request_timeout
    assert seconds(directive("proxy_read_timeout") or "60s") > DEFAULT.request_timeout
    assert seconds(directive("client_body_timeout") or "60s") >= DEFAULT.request_timeout
    assert directive("client_max_body_size") == f"{DEFAULT.max_body_bytes // 2**20}m"
    assert f"at most {DEFAULT.max_body_bytes // 2**20} MiB" in directive("return 413")


def test_compose_confines_the_services_and_publishes_their_ports_to_this_machine_only():
    confined = {"read_only": True, "tmpfs": "/tmp", "cap_drop": ["ALL"], "restart": "unless-stopped"}
    for name in ("serve", "proxy"):
        assert COMPOSE[name].items() >= (confined | {"security_opt": ["no-new-privileges:true"]}).items()
    published = [port for service in COMPOSE.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_compose_creates_no_folder():
    """Docker would create a missing folder as root. So each folder is in the repository, or Docker must refuse."""
    for volume in (volume for service in COMPOSE.values() for volume in service.get("volumes", [])):
        if isinstance(volume, str):
            assert (ROOT / volume.partition(":")[0]).exists()
        else:
            assert volume["bind"]["create_host_path"] is False


def test_a_windows_checkout_has_unix_line_ends_and_unchanged_binaries():
    if not (ROOT / ".git").exists():
        pytest.skip("expected a git checkout, found none")
    command = ["git", "ls-files", "--eol"]  # prints "i/lf w/lf attr/text=auto eol=lf <tab> path" per file
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for status, path in (line.split("\t") for line in files.splitlines()):
        binary = path.endswith((".gz", ".onnx", ".png", ".safetensors"))
        assert ("attr/-text" if binary else "eol=lf") in status.split(), path
        assert binary or status.split()[0] in ("i/lf", "i/none"), path


def test_make_on_windows_names_what_to_use_instead():
    done = make("--dry-run", "--always-make", "setup", "OS=Windows_NT")
    assert done.returncode == 2
    assert "expected Linux, macOS or WSL, found Windows: use Docker (docs/containers.md)" in done.stderr


TRAIN = "python -m train --seed 2"


@pytest.mark.parametrize(
    ("user", "owner", "allowed", "started"),
    [
        ("0", "1000:1001", True, f"setpriv --reuid 1000 --regid 1001 --clear-groups {TRAIN}"),
        ("0", "0:0", False, TRAIN),
        ("0", "", False, TRAIN),
        ("1000", "1000:1001", False, TRAIN),
        ("0", "1000:1001", False, None),
    ],
    ids=["as the owner", "root's folder, no capabilities", "no folder", "--user", "another's folder, no capabilities"],
)
def test_the_training_image_starts_as_the_owner_of_the_folder(tmp_path, user, owner, allowed, started):
    programs = {
        "id": f"echo {user}",
        "stat": f"echo {owner}" if owner else "exit 1",
        "setpriv": 'case "$*" in *python*) echo setpriv "$@";; esac; ' + ("exit 0" if allowed else "exit 1"),
        "python": 'echo python "$@"',
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", ROOT / "docker/train", "--seed", "2"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    if started:
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{started}\n", "")
    else:
        (line,) = done.stderr.splitlines()
        assert (done.returncode, done.stdout, line.endswith(f": add --user {owner}")) == (1, "", True)


def test_the_service_and_its_document_state_the_version():
    assert create_app(Config()).test_client().get("/v2").json["version"] == VERSION
    assert json.loads((ROOT / "serve/openapi.json").read_text())["info"]["version"] == VERSION


def test_the_images_and_the_manifests_have_the_version():
    assert re.findall(r"--build-arg VERSION=(\S+)", make("-n", "images").stdout) == [VERSION] * 2
    for folder in ("deploy/kubernetes", "deploy/kubernetes/kserve"):
        (image,) = yaml.safe_load((ROOT / folder / "kustomization.yaml").read_text())["images"]
        assert image["newTag"] == VERSION


def test_the_changelog_and_the_model_card_state_the_version():
    assert re.findall(r"^## \[(\d\S*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == VERSION
    assert f"version {VERSION} " in " ".join((RELEASE / "README.md").read_text().split())


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
    """In the master, the libraries would get locks that gevent has not patched, and a fork would lose their threads."""
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
