"""What pyproject.toml cannot say: a wheel carries configs/ as jaxgpt/shipped, for jaxgpt/config/shipped.py."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jaxgpt", "jaxgpt.*", "torch_ref", "torch_ref.*"]), "jaxgpt.shipped"],
    package_dir={"jaxgpt.shipped": "configs"},
)
