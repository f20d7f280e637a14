"""docs/benchmarks.md and its charts, from what benchmarks.train and benchmarks.serve measured.

`python -m benchmarks.report` reads docs/benchmarks-train.json and docs/benchmarks-serve.json.
"""

import argparse
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from train.device import describe, pick
from train.files import read_json, write_text

ROOT = Path(__file__).resolve().parents[1]
REFERENCE, EXAMPLES, OURS = "the reference's way", "pytorch/examples' way", "ours"


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    folder = parser.parse_args().out
    training, serving = (read_json(folder / f"benchmarks-{name}.json") for name in ("train", "serve"))
    mpl.use("Agg")
    _training_chart(training, folder / "benchmarks-train.png")
    _serving_chart(serving, folder / "benchmarks-serve.png")
    write_text(folder / "benchmarks.md", "\n".join([*_head(training), *_training(training), *_serving(serving)]) + "\n")


def _head(training: dict[str, Any]) -> list[str]:
    today = datetime.now(UTC).date()
    return [
        "# Benchmarks",
        "",
        f"{today}; {describe(pick('auto'))}; Python {platform.python_version()}, torch {training['torch']}. `make bench`",
        "measures all of it anew. ± is the standard deviation over rounds, in which the contestants take turns.",
        "",
    ]


def _training(result: dict[str, Any]) -> list[str]:
    models = result["models"]
    lines = [
        "## Training: seconds an epoch",
        "",
        f"| | {REFERENCE} | {EXAMPLES} | **ours** | ours is faster than the reference's way | the floor | of which we reach |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, model in models.items():
        seconds = model["seconds"]
        lines.append(
            f"| {name} | {_plus(seconds[REFERENCE])} | {_plus(seconds[EXAMPLES])} | **{_plus(seconds[OURS])}** | "
            f"{model['ratio']:.1f} × | {model['floor']:.2f} | {100 * model['floor'] / seconds[OURS]['mean']:.0f} % |"
        )
    total = sum(model["seconds"][OURS]["mean"] for model in models.values())
    lines += [
        "",
        "![Seconds an epoch](benchmarks-train.png)",
        "",
        f"Rounds: {result['rounds']}. An epoch is 859 batches of 64 and the evaluation. The reference's way is torchvision's",
        "transforms an image at a time and `loss.item()` at every step; pytorch/examples' is the same by a worker process.",
        f"The whole progression, 15 epochs of each, is {15 * total:.0f} seconds by these figures. The floor is the epoch's",
        f"floating-point operations at the {result['matrix_gflops']:.0f} GFLOP/s of a 2048×2048 matrix product here.",
        "",
        "| where an epoch's time goes | " + " | ".join(models) + " |",
        "|---|" + "---:|" * len(models),
    ]
    for part in ("augmentation", "forward", "backward", "optimizer", "evaluation"):
        shares = (f"{100 * model['shares'][part]:.0f} %" for model in models.values())
        lines.append(f"| {part} | " + " | ".join(shares) + " |")
    memory = ", ".join(f"{variant} {value:,.0f} MiB" for variant, value in result["MiB"].items())
    return [*lines, "", f"Peak memory of the process: {memory}.", ""]


def _serving(result: dict[str, Any]) -> list[str]:
    results = result["results"]
    servers = {name: values for name, values in results.items() if "MiB" in values}
    lines = [
        "## Serving",
        "",
        f"wrk, closed loop, {result['rounds']} rounds of {result['seconds']} seconds, warm; as many workers as cores, and wrk on",
        "the same cores. One 28×28 image in JSON, 2.6 kB:",
        "",
        "| | requests/s, 1 connection | 16 | 64 | p50 at 16, ms | p99 at 16, ms | CPU s a thousand | PNG at 16 | MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, values in servers.items():
        rates = " | ".join(_plus(values[f"json {count} rate"], 0) for count in (1, 16, 64))
        picture = _plus(values["png 16 rate"], 0) if "png 16 rate" in values else "–"
        lines.append(
            f"| {name} | {rates} | {_plus(values['json 16 p50'])} | {_plus(values['json 16 p99'])} | "
            f"{values['CPU seconds a thousand']['mean']:.2f} | {picture} | {values['MiB']['mean']:.0f} |"
        )
    ours, alone = results["ours"], results["ONNX Runtime alone"]
    ratios = ", ".join(
        f"{ours['json 16 rate']['mean'] / values['json 16 rate']['mean']:.2f} × {name}"
        for name, values in servers.items()
        if name != "ours"
    )
    bulk, best = ours["images in thousands 1 rate"]["mean"], alone["batch 1000"]["mean"]
    return [
        *lines,
        "",
        "![Requests a second](benchmarks-serve.png)",
        "",
        f"At 16 connections ours is {ratios}. The others do less: no metrics, no log line, no request id, no limit on what a",
        "slow client may hold, and pictures are not made into MNIST's form; ours does all of it in these figures.",
        "",
        f"The ceilings: ONNX Runtime alone, one thread, {alone['batch 1']['mean']:,.0f} images/s one at a time, "
        f"{alone['batch 100']['mean']:,.0f} a hundred at a time, {best:,.0f} a thousand at a time; our server",
        f"answering a constant (`/healthz`), 16 connections, {_plus(ours['constant 16 rate'], 0)} requests/s.",
        f"`application/octet-stream` of 1,000 images, one connection: {bulk:,.0f} images/s, {100 * bulk / best:.0f} % of ONNX",
        "Runtime's own rate for a thousand at a time on one core (the service hands it a hundred at a time).",
        "",
        "## Sizing",
        "",
        *_sizing(ours, alone),
    ]


def _sizing(ours: dict[str, Any], alone: dict[str, Any]) -> list[str]:
    cost = ours["CPU seconds a thousand"]["mean"]
    return [
        f"A JSON image costs {cost:.2f} ms of CPU, so a core that does nothing else answers about {1000 / cost:,.0f} a second; the",
        f"model is {1000 / alone['batch 1']['mean']:.2f} ms of it. In bulk, as raw bytes, a core does "
        f"{ours['images in thousands 1 rate']['mean']:,.0f} images a second: send many at a time where there are many.",
        f"The master and its workers held {ours['MiB']['mean']:.0f} MiB under this load.",
    ]


def _plus(value: dict[str, float], digits: int = 1) -> str:
    return f"{value['mean']:,.{digits}f} ± {value['sd']:,.{digits}f}"


def _training_chart(result: dict[str, Any], path: Path) -> None:
    models = result["models"]
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for offset, variant in enumerate((REFERENCE, EXAMPLES, OURS)):
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
    servers = {name: values for name, values in result["results"].items() if "MiB" in values}
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
