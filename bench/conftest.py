"""Benchmarks are run from the checkout: pytest bench --benchmark-json=FILE; see the Makefile."""

from typing import Any


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keep what tells machines apart, not which machine it was."""
    machine = output_json["machine_info"]
    cpu = machine.get("cpu", {})
    output_json["machine_info"] = {
        "cpu": {key: cpu.get(key) for key in ("brand_raw", "arch", "count", "l2_cache_size", "l3_cache_size", "flags")},
        "system": machine.get("system"),
        "python": machine.get("python_version"),
    }
    output_json["commit_info"] = {
        key: value for key, value in output_json["commit_info"].items() if key in ("id", "time", "dirty")
    }
