"""A config whose warm start takes seconds."""

import dataclasses

import pytest


@pytest.fixture
def config(tiny_config, tmp_path):
    settings = dataclasses.replace(
        tiny_config.warm_start, episodes=24, branches=3, steps=30, batch_tokens=1024,
        cache_dir=str(tmp_path),
    )
    return dataclasses.replace(tiny_config, warm_start=settings)
