"""A voice for every test of this folder, and what is needed to make it."""

import pytest

pytest.importorskip("soundfile", reason="speech needs soundfile (the speech extra)")
pytest.importorskip("soxr", reason="speech needs soxr (the speech extra)")
pytest.importorskip("espeakng_loader", reason="speech needs espeakng-loader (the speech extra)")

from tarl_jax.speech.espeak import Espeak


@pytest.fixture(scope="session")
def espeak():
    synthesiser = Espeak(workers=1, timeout_seconds=120)
    yield synthesiser
    synthesiser.close()
