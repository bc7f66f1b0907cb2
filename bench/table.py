"""A recorded run as text: python bench/table.py bench/results/FILE.json"""

import json
import sys
from typing import Any


def head(run: dict[str, Any]) -> list[str]:
    """Where and with what the run was made."""
    cpu, first = run["machine_info"]["cpu"], run["benchmarks"][0]["extra_info"]
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in (cpu["flags"] or ())]
    return [
        f"{cpu['brand_raw']}, {cpu['count']} cores ({', '.join(flags)}); {first['threads']} threads",
        f"Python {run['machine_info']['python']}, torch {first['torch']}, commit {run['commit_info']['id'][:12]}"
        + (" with uncommitted changes" if run["commit_info"]["dirty"] else ""),
    ]


def training_lines(run: dict[str, Any]) -> list[str]:
    """A line of rates a benchmark, and under a step where its time goes."""
    out = [
        "Views and whole training steps: make bench-train",
        *head(run),
        "",
        "views or images a second, and × how much faster ours is made: medians (quartiles) over paired rounds;",
        "torchvision v2 runs on one core, a view of an image at a time, as a worker of a DataLoader does",
        "",
    ]
    for info in (benchmark["extra_info"] for benchmark in run["benchmarks"]):
        what = "views" if info["kind"] == "views" else "images"
        out.append(f"{info['case']} on {info['device']}: ours {spread(info['per_second']['ours'], 1, 0)} {what}/s")
        for name, ratio in info["faster_than"].items():
            out.append(f"    × {name:12} {spread(ratio, 1, 1):>22}   {spread(info['per_second'][name], 1, 0)} {what}/s")
        if "phase_shares" in info:
            shares = ", ".join(f"{name} {100 * share[1]:.1f} %" for name, share in info["phase_shares"].items())
            out.append(f"    of an eager step with a wait after each part: {shares}")
        if "gpu_idle_share" in info:
            out.append(f"    the GPU idles {100 * info['gpu_idle_share']:.1f} % of the time")
    return out


def lines(run: dict[str, Any]) -> list[str]:
    """A head that says where and with what the run was made, and a row a benchmark."""
    infos = [benchmark["extra_info"] for benchmark in run["benchmarks"]]
    if "kind" in infos[0]:
        return training_lines(run)
    rates = infos[0]["roofline"]["rates"]
    out = [
        "Whole DoGo loss, forward and backward, on the CPU: make bench-cpu",
        *head(run),
        f"rates in this run: float32 matrix product {rates['gemm'] / 1e9:.0f} GFLOP/s, torch.exp "
        f"{rates['torch_exp'] / 1e9:.2f} G/s, csrc/exp2.h {rates['exp2'] / 1e9:.2f} G/s",
        "",
        "times: median (quartiles) in ms; ratios: of paired rounds, median (quartiles); memory: growth of the resident",
        "set above the inputs, at most; bound: products at the machine's rate plus exponentials at exp2.h's",
        "",
        f"{'dtype':9} {'N':>5} {'D':>4} {'fused':>22} {'dense':>22} {'torch.compile':>22} {'× dense':>17} "
        f"{'× compile':>17} {'bound':>7} {'% of it':>8} {'memory: fused, dense, compile (MiB)':>36}",
    ]
    for info in infos:
        times = {name: spread(values, 1e3, 1) for name, values in info["seconds"].items()}
        ratios = {name: spread(values, 1, 1) for name, values in info["faster_than"].items()}
        memory = [f"{info['peak_growth_bytes'][name] / 2**20:.1f}" for name in ("fused", "dense", "compiled")]
        roof = info["roofline"]
        bound = 1e3 * roof["bound_seconds"]
        out.append(
            f"{info['dtype']:9} {info['N']:5} {info['D']:4} {times['fused']:>22} {times['dense']:>22} "
            f"{times['compiled']:>22} {ratios['dense']:>17} {ratios['compiled']:>17} {bound:7.1f} "
            f"{roof['percent']:8.0f} {', '.join(memory):>36}"
        )
    return out


def spread(quartiles: list[float], scale: float, digits: int) -> str:
    low, middle, high = (f"{scale * value:.{digits}f}" for value in quartiles)
    return f"{middle} ({low}–{high})"


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        print("\n".join(lines(json.load(file))))
