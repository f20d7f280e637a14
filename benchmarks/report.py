"""Write docs/benchmarks.md and its charts from the figures of benchmarks.train and benchmarks.serve.

`python -m benchmarks.report` reads docs/benchmarks-train.json and docs/benchmarks-serve.json. With `--against` it adds
the difference from another run to benchmarks-serve.json.
"""

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.pages import wrap
from benchmarks.serve import BATCHES, WORKERS
from benchmarks.servers import BARE, FASTAPI, FLASK, LITSERVE, OURS, Server, with_duties
from benchmarks.train import ALL, VARIANTS
from train.errors import TrainError
from train.files import read_json, write_bytes, write_json
from train.markdown import table
from train.paths import ROOT
from train.progression import PROGRESSION

REFERENCE, WORKER, OUR_TRAINING = VARIANTS
WITH_DUTIES = [with_duties(peer) for peer in BARE]
CPU_GOAL_MS = 0.40  # per JSON request
Figures = tuple[dict[str, Any], dict[str, Any]]  # of training, of serving
Series = dict[str, list[dict[str, float]]]  # the bars of a chart by label: mean and standard deviation


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another run's figures, to add the noise")
    options = parser.parse_args()
    try:
        training, serving = now = _figures(options.out)
        if options.against:
            serving["noise"] = _noise(now, _figures(options.against))
            write_json(options.out / "benchmarks-serve.json", serving)
    except TrainError as error:
        parser.error(str(error))
    mpl.use("Agg")
    seconds = {name: [model["seconds"][name] for model in training["models"].values()] for name in VARIANTS}
    _chart(seconds, list(training["models"]), "seconds per epoch", options.out / "benchmarks-train.png")
    servers = [OURS, *BARE, *WITH_DUTIES]
    rates = {
        f"{count} connections": [serving["servers"][one.name][f"json {count} rate"] for one in servers]
        for count in (16, 64)
    }
    _chart(rates, [one.name for one in servers], "requests per second, JSON", options.out / "benchmarks-serve.png")
    text = markdown(training, serving)
    write_bytes(options.out / "benchmarks.md", text.encode())
    print(text)


def _figures(folder: Path) -> Figures:
    return read_json(folder / "benchmarks-train.json"), read_json(folder / "benchmarks-serve.json")


def markdown(training: dict[str, Any], serving: dict[str, Any]) -> str:
    """Return docs/benchmarks.md from the contents of benchmarks-train.json and benchmarks-serve.json."""
    parts = [*_head(training, serving), *_aims(training, serving), *_training(training)]
    parts += [*_serving(serving), *_sizing(serving), *(_noise_section(serving["noise"]) if "noise" in serving else [])]
    return wrap("\n\n".join(parts) + "\n")


def _head(training: dict[str, Any], serving: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in serving["versions"].items())
    return [
        "# Benchmarks",
        f"Training measured on {training['date']}, serving on {serving['date']}. The machines may differ, so "
        f"compare within a table only. {training['device']}; Python {training['python']}, torch {training['torch']}, "
        f"{versions}. `make bench` measures everything again. ± is the standard deviation over rounds; within a round "
        "the variants run one after the other.",
    ]


def _aims(training: dict[str, Any], serving: dict[str, Any]) -> list[str]:
    on_gpu = training["device"].startswith("GPU")
    goals = dict.fromkeys((*PROGRESSION, ALL), 100.0)
    if not on_gpu:
        goals = {"Model_1": 2.5, "Model_2": 2.5, "Model_3": 3.0, ALL: 2.0}
    aims: list[tuple[str, str, bool]] = []
    for name, goal in goals.items():
        ratio = training["models"][name]["ratio"]
        aims.append(
            (f"an epoch of {name} ≥ {goal:g} × as fast as the reference's way", f"{ratio:.2f} ×", ratio >= goal)
        )
    for peer, goal, goal_with_duties in ((FASTAPI, 0.8, 1.0), (LITSERVE, 3.0, 3.0), (FLASK, 1.3, 1.3)):
        for server, least in ((peer, goal), (with_duties(peer), goal_with_duties)):
            at_16, at_64 = (_ratio(serving, server, f"json {count} rate") for count in (16, 64))
            name = server.name if server.duties else f"{server.name}, bare"
            aim = f"requests per second at 64 connections ≥ {least:g} × {name}"
            aims.append((aim, f"{at_64:.2f} × (at 16: {at_16:.2f} ×)", at_64 >= least))
    ours, fastapi = (serving["servers"][server.name] for server in (OURS, FASTAPI))
    cpu = ours["CPU ms per request"]
    aims.append((f"CPU per JSON request ≤ {CPU_GOAL_MS:.2f} ms", f"{_plus(cpu, 2)} ms", cpu["mean"] <= CPU_GOAL_MS))
    p99, peers = ours["json 16 p99"], fastapi["json 16 p99"]
    found = f"{p99['mean']:.1f} ms, FastAPI's {peers['mean']:.1f} ms"
    aims.append(("p99 at 16 connections ≤ bare FastAPI's", found, p99["mean"] <= peers["mean"]))
    best = max(serving["runtime"].values())
    share, single = serving["scaling"]["batch 1000 images"] / best, ours["1000 images rate"]["mean"] / best
    found = (
        f"{100 * share:.0f} % by one worker (by a single connection, which waits for its client, {100 * single:.0f} %)"
    )
    aims.append(("1,000 images as bytes at ≥ 85 % of ONNX Runtime's own best rate", found, share >= 0.85))
    return [table(["aim", "measured", ""], [[*aim, "reached" if met else "**missed**"] for *aim, met in aims], left=3)]


def _ratio(serving: dict[str, Any], peer: Server, key: str) -> float:
    return float(serving["servers"][OURS.name][key]["mean"] / serving["servers"][peer.name][key]["mean"])


def _training(result: dict[str, Any]) -> list[str]:
    rows = []
    for name, model in result["models"].items():
        seconds = model["seconds"]
        ours = seconds[OUR_TRAINING]
        images = result["images"] * (len(PROGRESSION) if name == ALL else 1) / ours["mean"]
        cells = [_plus(seconds[REFERENCE]), _plus(seconds[WORKER]), f"**{_plus(ours)}**", f"{images:,.0f}"]
        share = f"{100 * model['floor'] / ours['mean']:.0f} %"
        rows.append([name, *cells, f"{model['ratio']:.2f} ×", f"{model['floor']:.2f}", share])
    columns = [
        "",
        REFERENCE,
        WORKER,
        "**ours**",
        "ours, images/s",
        "speed-up over the reference's way",
        "floor",
        "floor ÷ ours",
    ]
    every = result["models"][ALL]["seconds"]
    parts = ("augmentation", "forward", "backward", "optimizer", "evaluation")
    shares = [
        [part, *(f"{100 * result['models'][name]['shares'][part]:.0f} %" for name in PROGRESSION)] for part in parts
    ]
    memory = ", ".join(f"{variant} {value:,.0f} MiB" for variant, value in result["MiB"].items())
    return [
        "## Training: seconds per epoch",
        table(columns, rows),
        "![Seconds per epoch](benchmarks-train.png)",
        f"Rounds: {result['rounds']}. An epoch is 859 batches of 64 and the evaluation. The reference's way is "
        "torchvision's transforms on one image at a time and `loss.item()` at every step. With a worker process, as "
        "pytorch/examples has it on a GPU, another process prepares the images. “All three” is an epoch of each model: "
        "one after the other, but on a CPU ours are trained in parallel, one thread each. So 15 epochs of the "
        f"progression take {15 * every[OUR_TRAINING]['mean']:.0f} seconds, the reference's way "
        f"{15 * every[REFERENCE]['mean']:.0f}.",
        "Most of an epoch is torch's convolutions and batch normalisations, which are the same in all variants. Ours "
        "does not prepare single images, and leaves no core idle, as several threads for such small layers do.",
        f"The floor is an epoch's floating-point operations at the {result['matrix_gflops']:.0f} GFLOP/s of a "
        "2048×2048 matrix product on this machine.",
        table(["share of an epoch's time, one model alone", *PROGRESSION], shares),
        f"Peak memory of a process: {memory}.",
    ]


def _serving(result: dict[str, Any]) -> list[str]:
    servers, runtime = result["servers"], result["runtime"]
    rows = [
        [one.name, *(_plus(servers[one.name][f"{key} 16 rate"], 0) for key in ("png", "constant"))]
        for one in (OURS, *BARE)
        if one.constant
    ]
    bulk = servers[OURS.name]["1000 images rate"]["mean"]
    return [
        "## Serving",
        f"wrk, closed loop, {result['rounds']} rounds of {result['seconds']} seconds per measurement, after a warm-up. "
        "Every server has one worker per core and one ONNX Runtime thread per worker; wrk runs on the same cores. A "
        "request is one 28×28 image in JSON, 2.6 kB. Every start checks that the answer is right.",
        "### Bare: peers as in a tutorial",
        _server_table(servers, BARE),
        "Flask, FastAPI and LitServe have no metrics, access log, request id or body limit here; BentoML counts and "
        "logs requests by default. Ours does all of this in both tables: it is the same measurement. "
        "FastAPI's endpoint is `async`, its fastest form: it blocks its worker while the model runs.",
        "### Equal duties: peers with what an operator adds",
        _server_table(servers, WITH_DUTIES),
        "Each peer has [the same additions](../benchmarks/peers/duties.py): prometheus_client in multiprocess mode "
        "(requests by route, method and status; latency by route), one JSON line per request in the access log, a "
        "request id and a body limit. Every start checks that each of them works. Ours also counts the digits and "
        "their confidence, limits the time of slow clients, and brings pictures into MNIST's form.",
        "![Requests per second](benchmarks-serve.png)",
        "Connections are spread over the workers by chance, so a worker can be idle at 16 connections; the CPU per "
        f"request does not depend on that. Ours is {_ratio(result, FASTAPI, 'CPU ms per request'):.2f} times bare "
        f"FastAPI's and {_ratio(result, with_duties(FASTAPI), 'CPU ms per request'):.2f} times FastAPI's with duties. "
        "The rate for a constant shows how much of a request is the framework: for ours Flask and gunicorn, the log "
        "line and the metrics.",
        table(["requests per second at 16 connections", "PNG", "a constant"], rows),
        f"ONNX Runtime alone, on one thread, predicts {runtime['1']:,.0f} images/s one at a time, "
        f"{runtime['100']:,.0f} with 100 per call and {runtime['1000']:,.0f} with 1,000. Our service, sent 1,000 "
        f"images per request as `application/octet-stream` by one connection, predicts {bulk:,.0f}: it calls "
        "ONNX Runtime with 100 at a time.",
    ]


def _server_table(servers: dict[str, Any], peers: list[Server]) -> str:
    counts = peers[0].connections
    columns = ["", *(f"requests/s at {count}" for count in counts), *(f"ours ÷ it at {count}" for count in counts[-2:])]
    rows = []
    for server in (OURS, *peers):
        values = servers[server.name]
        ratios = (
            servers[OURS.name][f"json {count} rate"]["mean"] / values[f"json {count} rate"]["mean"]
            for count in counts[-2:]
        )
        row = [server.name, *(_plus(values[f"json {count} rate"], 0) for count in counts)]
        row += [f"{ratio:.2f} ×" if server != OURS else "" for ratio in ratios]
        row += [_plus(values["json 16 p50"]), _plus(values["json 16 p99"]), _plus(values["CPU ms per request"], 2)]
        rows.append([*row, f"{values['MiB']['mean']:.0f}"])
    return table([*columns, "p50 at 16, ms", "p99 at 16, ms", "CPU per request, ms", "MiB"], rows)


def _sizing(result: dict[str, Any]) -> list[str]:
    scaling = result["scaling"]
    by_workers, by_batch = (
        [[f"{size:,}", *(f"{scaling[f'{name} {size} {key}']:,.{digits}f}" for key, digits in keys)] for size in sizes]
        for name, sizes, keys in (
            ("workers", WORKERS, (("rate", 0), ("p99", 1), ("MiB at rest", 0), ("MiB", 0))),
            ("batch", BATCHES, (("images", 0), ("p99", 1), ("MiB", 0))),
        )
    )
    cost = result["servers"][OURS.name]["CPU ms per request"]["mean"]
    first, last = (scaling[f"workers {workers} MiB"] for workers in (WORKERS[0], WORKERS[-1]))
    single, hundred, thousand = (scaling[f"batch {batch} images"] for batch in (1, 100, 1_000))
    return [
        "## Sizing a deployment",
        "Our service alone, measured once.",
        table(
            ["workers", "requests/s, JSON, 16 connections", "p99, ms", "MiB at rest", "MiB under load"],
            by_workers,
            left=0,
        ),
        table(["images per request, bytes, 1 worker, 16 connections", "images/s", "p99, ms", "MiB"], by_batch, left=0),
        f"A JSON request costs {cost:.2f} ms of CPU: a core that does nothing else answers about {1000 / cost:,.0f} "
        "per second. The default is one worker per core. The master and the first worker need "
        f"{first:.0f} MiB under load, each further worker {(last - first) / (WORKERS[-1] - WORKERS[0]):.0f}. Send many "
        f"images together: a worker predicts {hundred / single:.0f} times as many per second with 100 images per "
        f"request as with one, with 1,000 {thousand / single:.0f} times as many, and each request takes longer.",
    ]


def _noise(now: Figures, before: Figures) -> dict[str, dict[str, float]]:
    """Return by what fraction two runs differ in the figures that are compared."""
    (training, serving), (training_before, serving_before) = now, before
    epochs = [
        _difference(model["seconds"][variant], training_before["models"][name]["seconds"][variant])
        for name, model in training["models"].items()
        for variant in VARIANTS
    ]
    rates, costs = (
        [_difference(values[key], serving_before["servers"][name][key]) for name, values in serving["servers"].items()]
        for key in ("json 64 rate", "CPU ms per request")
    )
    figures = {"seconds per epoch": epochs, "requests per second at 64 connections": rates, "CPU per request": costs}
    return {what: {"median": median(values), "max": max(values)} for what, values in figures.items()}


def _noise_section(noise: dict[str, dict[str, float]]) -> list[str]:
    lines = (
        f"- {what}: {100 * values['median']:.0f} % in the median, {100 * values['max']:.0f} % at most"
        for what, values in noise.items()
    )
    return ["## Noise", "Difference between this run and another on the same machine:", "\n".join(lines)]


def _difference(new: dict[str, float], old: dict[str, float]) -> float:
    return abs(new["mean"] / old["mean"] - 1)


def _plus(value: dict[str, float], digits: int = 1) -> str:
    return f"{value['mean']:,.{digits}f} ± {value['sd']:,.{digits}f}"


def _chart(series: Series, names: list[str], label: str, path: Path) -> None:
    """Draw horizontal bars, grouped by name, with standard deviations."""
    figure, axes = plt.subplots(figsize=(8, 1 + 0.2 * len(names) * len(series)), layout="constrained")
    height = 0.8 / len(series)
    for offset, ((name, values), colour) in enumerate(
        zip(series.items(), ("#c9ced6", "#1f4fd8", "#8d97a5"), strict=False)
    ):
        bars = axes.barh(
            [place + height * offset for place in range(len(names))],
            [value["mean"] for value in values],
            0.92 * height,
            xerr=[value["sd"] for value in values],
            label=name,
            color=colour,
        )
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=3)
    axes.set_yticks([place + height * (len(series) - 1) / 2 for place in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
