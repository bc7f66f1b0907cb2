"""Places the folder ``kernels`` in the package as ``dogo_fast.kernels``; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

kernels = ["dogo_fast.kernels", *(f"dogo_fast.kernels.{name}" for name in find_packages("kernels"))]

setup(
    packages=[*find_packages(include=["dogo_fast", "dogo_fast.*"]), *kernels],
    package_dir={"dogo_fast.kernels": "kernels"},
)
