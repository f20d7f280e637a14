"""The documentation names only files, headings, make targets, settings and metrics that exist."""

import json
import re
from pathlib import Path

import pytest
from msgspec.structs import fields
from prometheus_client import REGISTRY

from benchmarks import doubt, pictures, serve, train
from benchmarks.forms import FORMS
from benchmarks.pages import fill
from serve.config import Config
from train import studies
from train.paths import ROOT

PAGES = [
    *ROOT.glob("*.md"),
    *(page for room in ("data", "deploy", "docs", "model") for page in (ROOT / room).rglob("*.md")),
]
CODE = re.compile(r"^```.*?^```|^ {4}[^\n]*|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)", CODE.sub("", page.read_text()), re.MULTILINE)
    return [link for inline, reference in found if not re.match(r"[a-z]+:", link := inline or reference)]


def is_broken(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    file = (page.parent / name).resolve() if name else page
    return not file.exists() or bool(anchor and anchor not in anchors(file.read_text()))


def unknown_targets(text: str, makefile: str) -> set[str]:
    """Return the make targets that the code in a page calls, but that `makefile` does not define."""
    called = {name for code in CODE.findall(text) for name in re.findall(r"(?<![\w-])make ([a-z][a-z-]*)", code)}
    return called - set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


@pytest.mark.parametrize(
    ("page", "figures", "write"),
    [
        ("consistency", "consistency", lambda _, values: studies.consistency_page(values)),
        ("frontier", "frontier", lambda _, values: studies.frontier_page(values)),
        ("doubt", "doubt", lambda page, values: fill(page, doubt.figures(values))),
        ("pictures", "pictures", lambda page, values: fill(page, pictures.figures(values))),
        ("benchmarks", "benchmarks-train", lambda page, values: fill(page, train.figures(values))),
        ("benchmarks", "benchmarks-serve", lambda page, values: fill(page, serve.figures(values))),
    ],
)
def test_generated_page_is_written_from_the_committed_figures(page, figures, write):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert text == write(text, json.loads((ROOT / "docs" / f"{figures}.json").read_text()))


def test_every_form_of_pictures_is_described():
    described = re.findall(r"^- \*\*(.*)\*\*: ", (ROOT / "docs/pictures.md").read_text(), re.MULTILINE)
    assert described == [form.title for name, form in FORMS.items() if name not in ("coarse", "stretched")]


def test_links_and_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    checked = [(page, link) for page in PAGES for link in links(page)]
    assert len(checked) > 100
    assert [(page, link) for page, link in checked if is_broken(page, link)] == []
    assert {page: unknown for page in PAGES if (unknown := unknown_targets(page.read_text(), makefile))} == {}
    assert is_broken(ROOT / "README.md", "#nothing")
    assert is_broken(ROOT / "README.md", "docs/operation.md#nothing")
    code = "`make tests`\n```sh\nPORT=1 make run\n```\n    make two"
    assert unknown_targets(code, "test:\n") == {"tests", "run", "two"}


def test_every_setting_is_documented_with_its_default():
    page = (ROOT / "docs/operation.md").read_text()
    table = page.partition("## Configuration")[2].partition("\n## ")[0]
    documented = {}
    for names, values in re.findall(r"^\| (`.*?) \| (.*?) \|", table, re.MULTILINE):
        documented |= zip(re.findall(r"`(\w+)`", names), values.split("`, `"), strict=True)
    defaults = {field.name.upper(): field.default for field in fields(Config)}
    defaults["MODEL_DIR"] = defaults["MODEL_DIR"].relative_to(ROOT)
    special = {"WEB_CONCURRENCY": "number of cores", "PORT": str(Config().port)}
    expected = {
        name: special.get(name) or (f"{value:,}" if isinstance(value, int) else str(value or "none"))
        for name, value in defaults.items()
    }
    stated = {name: value.replace("`", "").partition(" (")[0] for name, value in documented.items()}
    assert stated == expected


MEBIBYTES, SECONDS, IDLE = (
    str(number) for number in (Config().max_body_bytes // 2**20, Config().request_timeout, Config().keep_alive)
)


@pytest.mark.parametrize(
    ("page", "sentence", "expected"),
    [
        ("docs/containers.md", r"`MAX_BODY_BYTES` above (\d+) MiB", (MEBIBYTES,)),
        ("docs/operation.md", r"bodies of (\d+) MiB", (MEBIBYTES,)),
        ("deploy/kubernetes/README.md", r"accept bodies of (\d+) MiB, wait for (\d+) seconds", (MEBIBYTES, SECONDS)),
        ("deploy/kubernetes/README.md", r"wait for \d+ seconds, .* after (\d+) seconds", (IDLE,)),
        ("serve/openapi.json", r"t most ([\d,]+) images and (\d+) MiB", (f"{Config().max_batch:,}", MEBIBYTES)),
        ("serve/openapi.json", r"at most (\d+) million pixels", (str(Config().max_pixels // 10**6),)),
    ],
)
def test_limits_are_the_code_s(page, sentence, expected):
    text = " ".join((ROOT / page).read_text().split())
    assert {match.groups() for match in re.finditer(sentence, text)} == {expected}


def test_the_time_to_stop_is_longer_than_a_request():
    (seconds,) = re.findall(r"docker stop -t (\d+)", (ROOT / "docs/operation.md").read_text())
    assert int(seconds) > Config().request_timeout


def test_results_in_the_readme_are_those_of_the_generated_page():
    claim = " ".join((ROOT / "docs/consistency.md").read_text().splitlines()[2].split())
    assert claim in " ".join((ROOT / "README.md").read_text().replace("\n> ", " ").split())


def test_every_metric_is_documented():
    page = (ROOT / "docs/operation.md").read_text()
    kinds = {metric.name: metric.type for metric in REGISTRY.collect()}
    names = {
        f"{name}_total" if kind == "counter" else name for name, kind in kinds.items() if name.startswith("digits_")
    }
    assert names - set(re.findall(r"`(digits_\w+)`", page)) == set()
