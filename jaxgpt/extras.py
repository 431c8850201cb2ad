"""Optional packages, and the command that installs them, for error messages.

The command names the packages themselves, which works for a checkout and for a wheel: by the name of an extra, pip
would look for jaxgpt in a registry. The requirements are those of pyproject.toml; a test compares them.
"""

EXTRAS = {
    "cuda": ("jax[cuda13]>=0.10,<0.12",),
    "tpu": ("jax[tpu]>=0.10,<0.12",),
    "plan-gpu": ("jax[cuda13-local]>=0.10,<0.12", "nvidia-cudnn-cu13>=9.12,<10"),
    "plan-tpu": ("jax[tpu]>=0.10,<0.12",),
    "torch": ("torch>=2.10",),
    "hf": ("datasets>=3",),
    "serve": ("starlette>=0.46", "uvicorn>=0.34", "pydantic>=2.10", "prometheus_client>=0.21"),
    "gguf": ("gguf>=0.10",),
    "lm-eval": ("lm-eval>=0.4.9",),
    "s3": ("s3fs>=2025.3",),
    "gcs": ("gcsfs>=2025.3",),
    "tracking": ("tensorboardX>=2.6", "wandb>=0.19", "trackio>=0.5"),
}


def pip_install(extra: str, only: str = "") -> str:
    """The command that installs an extra.

    Args:
      only: of its packages the one with this name.
    """
    wanted = [f"'{package}'" for package in EXTRAS[extra] if package.startswith(only)]
    assert wanted, only
    return f"pip install {' '.join(wanted)}"
