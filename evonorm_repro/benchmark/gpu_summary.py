"""What the parts of tools/check_gpu.py found, beside the targets; no GPU is needed for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .gpu_parts import LAYER_PARTS, PARTS
from .layers import of_copy, row_name
from .part import COMPLETE, read
from .plot import FAMILIES, PASSES, find_ours

LARGE = 4e6  # bytes of a map; below, launching and waiting take most of the time


class Target(NamedTuple):
    """A bound of a ratio."""

    name: str
    bound: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def worst(self, values: Iterable[float]) -> float:
        return (min if self.at_least else max)(values)

    def __str__(self) -> str:
        return f"{self.name}: {'at least' if self.at_least else 'at most'} {self.bound:g}"


COPY = Target("bandwidth over a copy's, 16 bits, maps over 4 MB", 0.75, at_least=True)
NATIVE = Target("time over GroupNorm + ReLU's or BatchNorm + ReLU's", 1.0)
TIMM = Target("timm's time over ours", 3.0, at_least=True)
HOST = Target("the host's time over that of the native layers", 1.3)
TRAINING = Target("an iteration with S0 over one with GN", 1.0)
TARGETS = (COPY, NATIVE, TIMM, HOST, TRAINING)
NAMES = {COPY: "copy", NATIVE: "native", TIMM: "timm", HOST: "host", TRAINING: "GN"}


class Row(NamedTuple):
    """What is compared with targets, and how it compares."""

    cells: tuple[str, ...]
    ratios: dict[Target, float]

    def missed(self) -> list[str]:
        return [NAMES[t] for t, value in self.ratios.items() if not t.met(value)]

    def shown(self, targets: Sequence[Target]) -> list[str]:
        values = (f"{self.ratios[t]:.2f}" if t in self.ratios else "" for t in targets)
        verdict = f"miss: {', '.join(self.missed())}" if self.missed() else "pass"
        return [*self.cells, *values, verdict]


def layer_rows(record: dict[str, Any]) -> Iterator[Row]:
    """For each of our layers, pass and shape: microseconds of device and host, ratios."""
    itemsize = 4 if record["dtype"] == "float32" else 2
    of = {(r["model"], tuple(r["shape"]), r["pass"], r["layer"]): r for r in record["results"]}
    for kind, norm in FAMILIES.items():
        for which in PASSES:
            for model, shape in dict.fromkeys(key[:2] for key in of):
                found = {key[3]: r for key, r in of.items() if key[:3] == (model, shape, which)}
                ours, native = found[find_ours(list(found), kind)], found[f"{norm} + ReLU"]
                megabytes = itemsize * shape[0] * shape[1] * shape[2] * shape[3] / 1e6
                ratios = {NATIVE: ours["median_ms"] / native["median_ms"]}
                if itemsize == 2 and megabytes * 1e6 > LARGE:
                    ratios[COPY] = of_copy(ours, found["copy"])
                if f"{kind} timm" in found:
                    ratios[TIMM] = found[f"{kind} timm"]["median_ms"] / ours["median_ms"]
                host = ""
                if "median_host_us" in ours:
                    ratios[HOST] = ours["median_host_us"] / native["median_host_us"]
                    host = f"{ours['median_host_us']:.0f}"
                compiled = ""  # without a target, which is for timm's layers as they are
                if f"{kind} timm, compiled" in found:
                    ratio = found[f"{kind} timm, compiled"]["median_ms"] / ours["median_ms"]
                    compiled = f"{ratio:.2f}"
                cells = (ours["layer"], which, row_name(model, shape), f"{megabytes:.1f}")
                microseconds = f"{1e3 * ours['median_ms']:.1f}"
                yield Row((*cells, microseconds, host, compiled), ratios)


def training_rows(record: dict[str, Any]) -> Iterator[Row]:
    """For each model and precision: milliseconds of an iteration with each norm, ratios."""
    for r in record["results"]:
        about = f"{r['model']} {' '.join(r['overrides'])}"
        if "processes" in r:
            about += f", {r['processes']} processes"
        times = (f"{n['norm']} {1e3 * n['median_s']:.1f}" for n in r["results"])
        others = (f"{pair} {x['median']:.3f}" for pair, x in r["ratios"].items())
        cells = (about, ", ".join(times), ", ".join(others))
        yield Row(cells, {TRAINING: r["ratios"]["EvoNormS0 / GN"]["median"]})


def summarize(out: Path) -> str:
    """A page in Markdown of all parts whose files are in the folder `out`."""
    records = {name: record for name in PARTS if (record := read(out, name))}
    rows = {
        name: list((layer_rows if name in LAYER_PARTS else training_rows)(record))
        for name, record in records.items()
        if record["results"] and name not in ("machine", "tests")
    }
    lines = ["# Check of the GPU kernels", ""]
    lines += dict.fromkeys(_device(record) for record in records.values() if "device" in record)
    if any(record.get("tiny") for record in records.values()):
        lines += ["", "This is a rehearsal on tiny shapes: no figure in it means anything."]
    lines += ["", *_parts(records), "", *_overview(rows)]
    for name, some in rows.items():
        lines += ["", f"## {name}", ""]
        if name in LAYER_PARTS:
            shown = [t for t in TARGETS if any(t in row.ratios for row in some)]
            heads = ["layer", "pass", "shape", "MB", "device µs", "host µs"]
            heads += ["timm compiled over it"]
            heads += [f"over {NAMES[t]}" if t != TIMM else "timm over it" for t in shown]
        else:
            shown = [TRAINING]
            heads = ["model", "ms", "ratios", "S0 over GN"]
        lines += _table([*heads, "verdict"], [row.shown(shown) for row in some])
    return "\n".join(lines) + "\n"


def _device(record: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"{record['device']}, {record['cores']} cores, {record['processor']}; {versions}"


def _parts(records: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each part: how it ended and what was left out."""
    cells = []
    for name in PARTS:
        record = records.get(name, {"left_out": [], "results": []})
        said = list(record["left_out"])
        if name == "machine":
            said += [
                f"a copy of {r['megabytes']} MB: {r['terabytes_per_second']:.2f} TB/s"
                for r in record["results"]
            ]
        if name == "tests":
            for r in record["results"]:
                said.append(f"{r['passed']} passed, {r['failed']} failed, {r['skipped']} skipped")
                said += [f"failed: {test}" for test in r["failures"]]
        for r in record["results"]:
            said += [
                f"{layer['layer']} on {r['processes']} processes: error {layer['error']:.0e}, "
                f"{'pass' if layer['sound'] else 'miss'}"
                for layer in r.get("layers", ())
            ]
        ended = record.get("ended", "has not run")
        cells.append([name, "" if ended == COMPLETE else ended, "; ".join(said)])
    return _table(["part", "not complete", "what it says"], cells)


def _overview(rows: dict[str, list[Row]]) -> list[str]:
    """A line for each target: how many rows meet it, and the worst."""
    cells = []
    for target in TARGETS:
        values = {
            (name, row.cells[:3]): row.ratios[target]
            for name, some in rows.items()
            for row in some
            if target in row.ratios
        }
        if not values:
            cells.append([str(target), "not measured", "", ""])
            continue
        worst = target.worst(values.values())
        name, where = next(at for at, value in values.items() if value == worst)
        number = sum(map(target.met, values.values()))
        verdict = "pass" if number == len(values) else "miss"
        place = f"{name}: {where[0] if target is TRAINING else ', '.join(where)}"
        cells.append([str(target), verdict, f"{number} of {len(values)}", f"{worst:.2f}, {place}"])
    return _table(["target", "verdict", "rows that pass", "worst"], cells)


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]
