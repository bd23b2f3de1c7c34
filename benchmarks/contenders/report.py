"""What the rounds say: fastest and median steps, ratios, the bars, a table and a picture."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch


@dataclass(frozen=True)
class Bar:
    """What the project wants of one measured number. `kind`: a ratio of fastest steps (theirs / ours, at least), a share of
    the machine's ceiling (at least), peak memory (ours / theirs, at most), or seconds (at most)."""

    case: str
    what: str
    family: str
    floor: float
    goal: float | None = None
    kind: str = "ratio"
    ours: str = "ours"


CPU = (
    Bar("a", "against PyTorch by hand", "PyTorch", 0.95, 1.05),
    Bar("a", "against Pyro's SVI", "Pyro", 1.2, 1.4),
    Bar("a", "against NumPyro, jitted", "NumPyro jit", 0.9, 1.0),
    Bar("a", "against pythae", "pythae", 1.3, 1.5),
    Bar("a", "against pyroVED", "pyroVED", 1.4, 1.7),
    Bar("a", "bf16 against PyTorch by hand, fp32", "PyTorch", 1.3, 1.6, ours="ours bf16"),
    Bar("a", "share of the fp32 matrix-product ceiling", "", 0.6, 0.75, kind="ceiling"),
    Bar("a", "peak memory of the process, over PyTorch by hand", "PyTorch", 1.15, kind="memory"),
    Bar("b", "against Pyro's SVI", "Pyro", 3.5, 5.0),
    Bar("b", "against PyTorch by hand", "PyTorch", 1.4, 1.8),
    Bar("b", "against NumPyro, jitted", "NumPyro jit", 0.8, 1.1),
    Bar("c", "against Pyro's TraceEnum_ELBO", "Pyro", 1.25, 1.6),
    Bar("e", "against the tutorial's script", "Pyro", 3.0),
    Bar("e", "against pythae's TrainingPipeline", "pythae", 2.0),
    Bar("f", "against pythae's get_nll", "pythae", 3.0),
    Bar("h", "five levels against Pyro's SVI", "Pyro", 2.5),
    Bar("i", "ladder of five levels against Pyro's SVI", "Pyro", 2.5),
)
CUDA = (
    Bar("a", "against Pyro's SVI", "Pyro", 10.0),
    Bar("a", "against PyTorch in a CUDA graph", "PyTorch graphed", 1.0),
    Bar("b", "against Pyro's SVI", "Pyro", 10.0),
    Bar("b", "against PyTorch in a CUDA graph", "PyTorch graphed", 1.0),
    Bar("e", "100 epochs of the fit, seconds", "", 10.0, kind="seconds", ours="ours, 100 epochs"),
)

COLOURS = {"ours": "#1b6ca8", "PyTorch": "#e07b39", "Pyro": "#8a8a8a", "NumPyro": "#5b9a68", "pythae": "#a05195"}
COLOURS |= {"pyroVED": "#b59b00", "products": "#cccccc"}


def fastest(entry: dict[str, Any]) -> float:
    """The median over rounds of the fastest step, which one lucky round cannot move."""
    return statistics.median(r["fastest_ms"] for r in entry["rounds"])


def usable(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: e for name, e in case["contenders"].items() if e["rounds"] and e["status"] == "ok"}


def best(case: dict[str, Any], family: str) -> tuple[str, dict[str, Any]] | None:
    """The fastest of a family, which then stands for it in every round."""
    among = {name: e for name, e in usable(case).items() if e["family"] == family}
    name = min(among, key=lambda n: fastest(among[n]), default=None)
    return None if name is None else (name, among[name])


def ratio(theirs: dict[str, Any], ours: dict[str, Any]) -> float:
    pairs = zip(theirs["rounds"], ours["rounds"])
    return statistics.median(t["fastest_ms"] / o["fastest_ms"] for t, o in pairs)


def summarise(result: dict[str, Any]) -> None:
    """Adds to each contender what its rounds come to, to each case who is best, and the bars."""
    for case in result["cases"].values():
        ours = best(case, "ours")
        case["best_ours"] = ours[0] if ours else None
        for entry in usable(case).values():
            entry["fastest_ms"] = min(r["fastest_ms"] for r in entry["rounds"])
            entry["median_ms"] = statistics.median(r["median_ms"] for r in entry["rounds"])
            if case["gflop"] and entry["family"] != "machine":
                entry["gflop_per_s"] = 1e3 * case["gflop"] / entry["fastest_ms"]
            if ours and entry["family"] != "machine":
                entry["times_ours"] = ratio(entry, ours[1])
    result["ceiling"] = result["cases"].get("a", {}).get("contenders", {}).get("ceiling", {}).get("notes")
    result["bars"] = [measure(bar, result) for bar in (CPU if result["device"] == "cpu" else CUDA)]


def measure(bar: Bar, result: dict[str, Any]) -> dict[str, Any]:
    """floor, goal, measured, met; measured is None with a reason where there is nothing to compare."""
    row: dict[str, Any] = {"case": bar.case, "what": bar.what, "kind": bar.kind, "floor": bar.floor, "goal": bar.goal}
    row |= {"measured": None, "met": "not measured"}
    case = result["cases"].get(bar.case)
    if case is None:
        return row
    ours, theirs = best(case, bar.ours), best(case, bar.family) if bar.family else None
    if ours is None or (bar.family and theirs is None):
        return row
    row["ours"] = ours[0]
    if theirs:
        row["theirs"] = theirs[0]
    measured: float | None = None
    if bar.kind == "ratio" and theirs:
        measured = ratio(theirs[1], ours[1])
    elif bar.kind == "ceiling" and result["ceiling"]:
        measured = ours[1]["gflop_per_s"] / result["ceiling"]["best"]["float32"]
    elif bar.kind == "memory" and theirs and "memory" in ours[1] and theirs[1].get("memory"):
        # all of it, imports, data and compiler included: what the machine must have; on CUDA what the device must hold
        measured = ours[1]["memory"]["with_imports_and_data_mb"] / theirs[1]["memory"]["with_imports_and_data_mb"]
    elif bar.kind == "seconds":
        measured = min(r["fit_seconds"] for r in ours[1]["rounds"])
    if measured is None:
        return row
    at_most = bar.kind in ("memory", "seconds")
    good = measured <= bar.floor if at_most else measured >= bar.floor
    better = good and bar.goal is not None and measured >= bar.goal
    row |= {"measured": round(measured, 3), "met": "goal" if better else "floor" if good else "MISSED"}
    return row


# --- words -----------------------------------------------------------------------------------------------------------


def tables(result: dict[str, Any]) -> str:
    """Everything as plain text."""
    machine = ", ".join(
        f"{value} {key}" if key in ("cores", "threads") else str(value) for key, value in _machine(result)
    )
    lines = [f"{result['date']}, {machine}", f"rows: {result['rows']}", ""]
    if result["smoke"]:
        lines.insert(0, "A smoke run: these numbers mean nothing.")
    for key, case in result["cases"].items():
        flops = f", {case['gflop']:.3g} GFLOP a step" if case["gflop"] else ""
        lines.append(f"{key}. {case['title']}{flops}; ours: {case['best_ours']}")
        peak, beside = "peak MB", "of it, beside imports and data"
        header = ("contender", "fastest ms", "median ms", "times ours", "GFLOP/s", "first step s", peak, beside, "loss")
        rows = [_row(name, e) for name, e in case["contenders"].items() if e["family"] != "machine"]
        lines += _align([header, *[r for r in rows if len(r) > 2]])
        lines += [f"  {name}: {error}" for name, error in (r for r in rows if len(r) == 2)]
        lines.append("")
    if result["ceiling"]:
        best_of = result["ceiling"]["best"]
        lines += [f"matrix-product ceiling, GFLOP/s: {', '.join(f'{p} {g:.0f}' for p, g in best_of.items())}", ""]
    header = ("case", "bar", "floor", "goal", "measured", "met", "ours / theirs")
    bars = []
    for b in result["bars"]:
        who = " / ".join(b[side] for side in ("ours", "theirs") if side in b)
        measured = "-" if b["measured"] is None else f"{b['measured']:.2f}"
        goal = "" if b["goal"] is None else f"{b['goal']:g}"
        sign = "<= " if b["kind"] in ("memory", "seconds") else ""
        bars.append((b["case"], b["what"], f"{sign}{b['floor']:g}", goal, measured, b["met"], who))
    return "\n".join([*lines, *_align([header, *bars])])


def _machine(result: dict[str, Any]) -> list[tuple[str, Any]]:
    return [*result["machine"].items(), *((n, f"{n} {v}") for n, v in result["versions"].items())]


def _row(name: str, entry: dict[str, Any]) -> tuple[str, ...]:
    if entry["status"] != "ok" or not entry["rounds"]:
        return name, f"{entry['status']}: {entry.get('error', 'no round')}"
    ran_as = entry.get("notes", {}).get("ran_as")
    if ran_as and ran_as not in name:
        name = f"{name} (ran as {ran_as})"

    def shown(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    digits = 3 if entry["fastest_ms"] < 100 else 0
    memory = entry.get("memory", {})
    return (
        name,
        shown(entry["fastest_ms"], digits),
        shown(entry["median_ms"], digits),
        shown(entry.get("times_ours"), 2),
        shown(entry.get("gflop_per_s"), 0),
        shown(entry.get("first_step_s"), 1),
        shown(memory.get("with_imports_and_data_mb"), 0),
        shown(memory.get("peak_mb"), 0),
        shown(entry.get("loss"), 1),
    )


def _align(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    numbers = [all(_numeric(row[i]) for row in rows[1:]) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numbers)).rstrip()
        for row in rows
    ]


def _numeric(text: str) -> bool:
    return not text.strip("0123456789.-<= einfa")


# --- picture ---------------------------------------------------------------------------------------------------------


def plot(result: dict[str, Any], path: Path) -> None:
    """One panel a case, a bar a contender: its fastest step; ours in blue, the fastest of ours at the dashed line."""
    cases = {key: case for key, case in result["cases"].items() if usable(case)}
    cases = {key: case for key, case in cases.items() if len(_drawn(case)) > 0}
    if not cases:
        return
    counts = [len(_drawn(case)) for case in cases.values()]
    figure, axes = plt.subplots(
        len(cases),
        1,
        figsize=(8, 0.75 * len(cases) + 0.23 * sum(counts) + 0.6),
        gridspec_kw={"height_ratios": [n + 0.8 for n in counts]},
        layout="constrained",
        squeeze=False,
    )
    families = []
    for axis, (key, case) in zip(axes[:, 0], cases.items()):
        entries = sorted(_drawn(case).items(), key=lambda item: item[1]["fastest_ms"])
        seconds = max(e["fastest_ms"] for _, e in entries) >= 1000
        unit = 1000 if seconds else 1
        for place, (name, entry) in enumerate(entries):
            family = next((f for f in COLOURS if entry["family"].startswith(f)), "Pyro")
            families.append(family)
            value = entry["fastest_ms"] / unit
            axis.barh(place, value, color=COLOURS[family], height=0.72)
            times = entry.get("times_ours")
            beside = f"{value:.3g}" + (f"  ({times:.2f}×)" if times and name != case["best_ours"] else "")
            axis.annotate(beside, (value, place), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
        axis.set_yticks(range(len(entries)), [name for name, _ in entries], fontsize=8)
        for label, (name, _) in zip(axis.get_yticklabels(), entries):
            label.set_fontweight("bold" if name == case["best_ours"] else "normal")
        axis.invert_yaxis()
        if case["best_ours"] in dict(entries):
            axis.axvline(dict(entries)[case["best_ours"]]["fastest_ms"] / unit, color="black", lw=0.8, ls="--")
        axis.set_xlim(0, 1.18 * max(e["fastest_ms"] for _, e in entries) / unit)
        whole = dict.fromkeys("ep", "the process") | dict.fromkeys("fkl", "the evaluation")
        what = whole.get(key, "fastest step")
        axis.set_title(f"{key}. {case['title']}: {what}, {'s' if seconds else 'ms'}", fontsize=9, loc="left")
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    patches = [Patch(color=c, label="pyrovae" if f == "ours" else f) for f, c in COLOURS.items() if f in families]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False)
    where = result["machine"].get("gpu") or f"{result['machine']['threads']} threads, {result['machine']['cpu']}"
    smoke = "smoke run, the numbers mean nothing: " if result["smoke"] else ""
    figure.suptitle(f"{smoke}{where}; in brackets: times the fastest of ours, median of rounds", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _drawn(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: e for name, e in usable(case).items() if e["family"] not in ("machine", "ours, 100 epochs")}
