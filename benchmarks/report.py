"""docs/benchmarks.md and its charts, from what benchmarks.train and benchmarks.serve measured.

`python -m benchmarks.report` reads docs/benchmarks-train.json and docs/benchmarks-serve.json.
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.serve import BATCHES, WORKERS
from benchmarks.train import ALL, VARIANTS
from train.errors import TrainError
from train.files import read_json, write_bytes
from train.progression import PROGRESSION

ROOT = Path(__file__).resolve().parents[1]
REFERENCE, WORKER, OURS = VARIANTS
Figures = tuple[dict[str, Any], dict[str, Any]]  # of training, of serving


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument(
        "--against", type=Path, metavar="FOLDER", help="of another run's figures: says how far they are"
    )
    options = parser.parse_args()
    try:
        training, serving = now = _figures(options.out)
        before = _figures(options.against) if options.against else None
    except TrainError as error:
        parser.error(str(error))
    mpl.use("Agg")
    _training_chart(training, options.out / "benchmarks-train.png")
    _serving_chart(serving, options.out / "benchmarks-serve.png")
    lines = [*_head(training, serving), *_aims(training, serving)]
    lines += [*_training(training), *_serving(serving), *_sizing(serving)]
    if before:
        lines += _noise(now, before)
    write_bytes(options.out / "benchmarks.md", "\n".join([*lines, ""]).encode())
    print("\n".join(lines))


def _figures(folder: Path) -> Figures:
    return read_json(folder / "benchmarks-train.json"), read_json(folder / "benchmarks-serve.json")


def _head(training: dict[str, Any], serving: dict[str, Any]) -> list[str]:
    today = datetime.now(UTC).date()
    versions = ", ".join(f"{name} {version}" for name, version in serving["versions"].items())
    return [
        "# Benchmarks",
        "",
        f"{today}; {training['device']}; Python {training['python']}, torch {training['torch']}, {versions}.",
        "`make bench` measures all of it anew. ± is the standard deviation over rounds, in which the contestants take",
        "turns.",
        "",
    ]


def _aims(training: dict[str, Any], serving: dict[str, Any]) -> list[str]:
    ratios = {name: model["ratio"] for name, model in training["models"].items()}
    on_gpu = training["device"].startswith("GPU")
    goals = dict.fromkeys(PROGRESSION, 100.0) if on_gpu else {"Model_1": 2.5, "Model_2": 2.5, "Model_3": 3.0}
    servers = _servers(serving)
    ours, fastapi = servers["ours"], servers["FastAPI + uvicorn"]
    best = max(rate["mean"] for rate in serving["results"]["ONNX Runtime alone"].values())
    bulk = serving["results"]["growth"]["batch 1000 images"]["mean"]
    single = ours["images in thousands 1 rate"]["mean"]
    return [
        "| aim | reached |",
        "|---|---|",
        *(
            f"| an epoch of {name} {goal:g} × as fast as the reference's way | {ratios[name]:.2f} × |"
            for name, goal in goals.items()
        ),
        f"| the same of the whole progression | {ratios[ALL]:.2f} × |",
        *(
            f"| requests a second at 16 connections ≥ {goal} × {name} | {_ratio(ours, servers[name], 'json 16 rate'):.2f} × "
            f"(at 64: {_ratio(ours, servers[name], 'json 64 rate'):.2f} ×) |"
            for name, goal in (("FastAPI + uvicorn", 1.0), ("Flask + gunicorn, plain", 1.3), ("LitServe", 3.0))
        ),
        f"| p99 at 16 connections no longer than FastAPI's | {ours['json 16 p99']['mean']:.1f} ms, FastAPI's "
        f"{fastapi['json 16 p99']['mean']:.1f} |",
        f"| 1,000 images as bytes at ≥ 85 % of ONNX Runtime's own rate, at its best | {100 * bulk / best:.0f} %, one worker "
        f"and one thread; of a single connection, which waits for its client, {100 * single / best:.0f} % |",
        "",
    ]


def _ratio(one: dict[str, Any], other: dict[str, Any], key: str) -> float:
    return float(one[key]["mean"] / other[key]["mean"])


def _training(result: dict[str, Any]) -> list[str]:
    models = result["models"]
    lines = [
        "## Training: seconds an epoch",
        "",
        f"| | {REFERENCE} | {WORKER} | **ours** | ours, in images/s | ours beside the reference's way | the floor | of it we reach |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, model in models.items():
        seconds = model["seconds"]
        images = result["images"] * (len(models) - 1 if name == ALL else 1) / seconds[OURS]["mean"]
        lines.append(
            f"| {name} | {_plus(seconds[REFERENCE])} | {_plus(seconds[WORKER])} | **{_plus(seconds[OURS])}** | "
            f"{images:,.0f} | {model['ratio']:.2f} × | {model['floor']:.2f} | "
            f"{100 * model['floor'] / seconds[OURS]['mean']:.0f} % |"
        )
    every = models[ALL]["seconds"]
    lines += [
        "",
        "![Seconds an epoch](benchmarks-train.png)",
        "",
        f"Rounds: {result['rounds']}. An epoch is 859 batches of 64 and the evaluation. The reference's way is torchvision's",
        "transforms an image at a time and `loss.item()` at every step; the worker process, which pytorch/examples has on a GPU,",
        "prepares its images beside it.",
        '"All three" is an epoch of each model: one after the other, but on a CPU ours are trained in parallel, a thread',
        f"each. So the progression's 15 epochs take {15 * every[OURS]['mean']:.0f} seconds, the reference's way "
        f"{15 * every[REFERENCE]['mean']:.0f}.",
        "Either way most of an epoch is torch's convolutions and batch normalisations, the same for all: what ours saves is",
        "the preparation of images, and the cores that wait where several threads share layers this small.",
        f"The floor is an epoch's floating-point operations at the {result['matrix_gflops']:.0f} GFLOP/s of a 2048×2048 matrix",
        "product here.",
        "",
        "| where an epoch's time goes, one model alone | " + " | ".join(PROGRESSION) + " |",
        "|---|" + "---:|" * len(PROGRESSION),
    ]
    for part in ("augmentation", "forward", "backward", "optimizer", "evaluation"):
        shares = (f"{100 * models[name]['shares'][part]:.0f} %" for name in PROGRESSION)
        lines.append(f"| {part} | " + " | ".join(shares) + " |")
    memory = ", ".join(f"{variant} {value:,.0f} MiB" for variant, value in result["MiB"].items())
    return [*lines, "", f"Peak memory of a process: {memory}.", ""]


def _serving(result: dict[str, Any]) -> list[str]:
    results = result["results"]
    servers = _servers(result)
    lines = [
        "## Serving",
        "",
        f"wrk, closed loop, {result['rounds']} rounds of {result['seconds']} seconds, warm; as many workers as cores, and wrk on",
        "the same cores. One 28×28 image in JSON, 2.6 kB:",
        "",
        "| | requests/s, 1 connection | 16 | 64 | p50 at 16, ms | p99 at 16, ms | CPU s a thousand | PNG at 16 | "
        "a constant at 16 | MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, values in servers.items():
        rates = " | ".join(_plus(values[f"json {count} rate"], 0) for count in (1, 16, 64))
        picture = _plus(values["png 16 rate"], 0) if "png 16 rate" in values else "–"
        lines.append(
            f"| {name} | {rates} | {_plus(values['json 16 p50'])} | {_plus(values['json 16 p99'])} | "
            f"{values['CPU seconds a thousand']['mean']:.2f} | {picture} | {_plus(values['constant 16 rate'], 0)} | "
            f"{values['MiB']['mean']:.0f} |"
        )
    ours, fastapi = servers["ours"], servers["FastAPI + uvicorn"]
    alone = {size: results["ONNX Runtime alone"][f"batch {size}"]["mean"] for size in (1, 100, 1_000)}
    bulk = ours["images in thousands 1 rate"]["mean"]
    return [
        *lines,
        "",
        "![Requests a second](benchmarks-serve.png)",
        "",
        "Connections land on the workers by chance, and where all 16 land on one the others are idle: the CPU a request does",
        f"not depend on it, and ours is {_ratio(ours, fastapi, 'CPU seconds a thousand'):.1f} times FastAPI's.",
        "FastAPI's endpoint is `async`, its fastest form, which holds its worker while",
        f"the model runs; as a plain function, which FastAPI puts in a thread, it answers {_plus(fastapi['threaded 16 rate'], 0)}.",
        "The others do less: no metrics, no log line, no request id, no limit on what a slow client may hold, and pictures",
        "are not made into MNIST's form. Plain Flask is the tutorial's, with a pool of ONNX Runtime's threads in each worker,",
        "the others have one thread each. What ours costs beyond the model is Flask and gunicorn above all, as the column of",
        "the constant shows (ours logs and counts it as well), then reading JSON, a log line and the metrics.",
        "",
        f"ONNX Runtime alone, one thread, predicts {alone[1]:,.0f} images/s one at a time, {alone[100]:,.0f} a hundred at a time,",
        f"{alone[1_000]:,.0f} a thousand at a time. `application/octet-stream` of 1,000 images, one connection: {bulk:,.0f}",
        f"images/s, {100 * bulk / alone[1_000]:.0f} % of the last and {100 * bulk / alone[100]:.0f} % of the best: the service hands",
        "it a hundred at a time.",
        "",
    ]


def _servers(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: values for name, values in result["results"].items() if "json 16 rate" in values}


def _sizing(result: dict[str, Any]) -> list[str]:
    growth = result["results"]["growth"]
    lines = [
        "## Sizing a deployment",
        "",
        "| workers | requests/s, JSON, 16 connections | p99, ms | MiB at rest | MiB under load |",
        "|---:|---:|---:|---:|---:|",
    ]
    for workers in WORKERS:
        rate, p99, rest, load = (growth[f"workers {workers} {key}"] for key in ("rate", "p99", "MiB at rest", "MiB"))
        lines.append(f"| {workers} | {_plus(rate, 0)} | {_plus(p99)} | {rest['mean']:.0f} | {load['mean']:.0f} |")
    lines += [
        "",
        "| images a request, raw bytes, 1 worker, 16 connections | images/s | p99, ms | MiB |",
        "|---:|---:|---:|---:|",
    ]
    for batch in BATCHES:
        images, p99, memory = (growth[f"batch {batch} {key}"] for key in ("images", "p99", "MiB"))
        lines.append(f"| {batch:,} | {_plus(images, 0)} | {_plus(p99)} | {memory['mean']:.0f} |")
    cost = result["results"]["ours"]["CPU seconds a thousand"]["mean"]
    first, last = (growth[f"workers {workers} MiB"]["mean"] for workers in (WORKERS[0], WORKERS[-1]))
    single, hundred, thousand = (growth[f"batch {batch} images"]["mean"] for batch in (1, 100, 1_000))
    return [
        *lines,
        "",
        f"A JSON image costs {cost:.2f} ms of CPU: a core that does nothing else answers about {1000 / cost:,.0f} a second. A worker a",
        f"core is the default. The master and the first worker held {first:.0f} MiB under load, each worker more",
        f"{(last - first) / (WORKERS[-1] - WORKERS[0]):.0f}. Where images come in numbers, send them together: by the hundred, a worker predicts",
        f"{hundred / single:.0f} times the images a second that it does one by one, by the thousand {thousand / single:.0f} times, and each",
        "request waits the longer.",
        "",
    ]


def _noise(now: Figures, before: Figures) -> list[str]:
    """Say how far two runs are from one another in what the comparisons rest on."""
    (training, serving), (training_before, serving_before) = now, before
    epochs = [
        _difference(model["seconds"][variant], training_before["models"][name]["seconds"][variant])
        for name, model in training["models"].items()
        for variant in VARIANTS
    ]
    servers_before = _servers(serving_before)
    rates, costs = (
        [_difference(values[key], servers_before[name][key]) for name, values in _servers(serving).items()]
        for key in ("json 16 rate", "CPU seconds a thousand")
    )
    return [
        "## Noise",
        "",
        "How far another run of all of it, on the same machine, was from this one:",
        "",
        *(
            f"- {_percent(values)}: {what}"
            for what, values in (
                ("the seconds of an epoch", epochs),
                ("requests a second at 16 connections", rates),
                ("CPU seconds a thousand requests", costs),
            )
        ),
    ]


def _difference(new: dict[str, float], old: dict[str, float]) -> float:
    return abs(new["mean"] / old["mean"] - 1)


def _percent(differences: list[float]) -> str:
    return f"{100 * median(differences):.0f} % in the median and {100 * max(differences):.0f} % at most"


def _plus(value: dict[str, float], digits: int = 1) -> str:
    return f"{value['mean']:,.{digits}f} ± {value['sd']:,.{digits}f}"


def _training_chart(result: dict[str, Any], path: Path) -> None:
    models = result["models"]
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for offset, variant in enumerate((REFERENCE, WORKER, OURS)):
        values = [model["seconds"][variant] for model in models.values()]
        bars = axes.bar(
            [place + 0.27 * (offset - 1) for place in range(len(models))],
            [value["mean"] for value in values],
            0.25,
            yerr=[value["sd"] for value in values],
            label=variant,
            color=("#c9ced6", "#8d97a5", "#1f4fd8")[offset],
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks(range(len(models)), list(models))
    axes.set_ylabel("seconds an epoch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _serving_chart(result: dict[str, Any], path: Path) -> None:
    servers = _servers(result)
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for offset, count in enumerate((1, 16, 64)):
        values = [server[f"json {count} rate"] for server in servers.values()]
        bars = axes.barh(
            [place + 0.27 * (offset - 1) for place in range(len(servers))],
            [value["mean"] for value in values],
            0.25,
            xerr=[value["sd"] for value in values],
            label=f"{count} connection{'s' if count > 1 else ''}",
            color=("#c9ced6", "#1f4fd8", "#8d97a5")[offset],
        )
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=3)
    axes.set_yticks(range(len(servers)), list(servers))
    axes.invert_yaxis()
    axes.set_xlabel("requests a second, one image in JSON")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
