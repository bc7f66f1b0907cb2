"""A recorded run as text: python bench/table.py bench/results/FILE.json"""

import json
import sys
from typing import Any


def lines(run: dict[str, Any]) -> list[str]:
    """A head that says where and with what the run was made, and a row a benchmark."""
    infos = [benchmark["extra_info"] for benchmark in run["benchmarks"]]
    cpu, first = run["machine_info"]["cpu"], infos[0]
    rates = first["roofline"]["rates"]
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in (cpu["flags"] or ())]
    out = [
        "Whole DoGo loss, forward and backward, on the CPU: make bench-cpu",
        f"{cpu['brand_raw']}, {cpu['count']} cores ({', '.join(flags)}); {first['threads']} threads",
        f"Python {run['machine_info']['python']}, torch {first['torch']}, commit {run['commit_info']['id'][:12]}"
        + (" with uncommitted changes" if run["commit_info"]["dirty"] else ""),
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
