"""A voice for every test of this folder."""

import pytest

from tarl_jax.speech.espeak import Espeak


@pytest.fixture(scope="session")
def espeak():
    synthesiser = Espeak(workers=1, timeout_seconds=120)
    yield synthesiser
    synthesiser.close()
