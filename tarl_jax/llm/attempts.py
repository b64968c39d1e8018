"""How often, and after which waits, a request that failed is sent again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tarl_jax.config import LLMConfig
from tarl_jax.llm.errors import FAULTS, LLMError

if TYPE_CHECKING:
    import tenacity

LONGEST_WAIT = 300.0  # seconds; a server that asks for more is given up on
_LONGEST_BACKOFF = 60.0


def attempts(
    config: LLMConfig, pause: Callable[[float], None], deadline: float | None = None
) -> tenacity.Retrying:
    """Calls a function again where its LLMError is one that passes; raises the last one.

    Waits at random, twice as long from one attempt to the next, and as long as a server asks.

    pause: waits so many seconds. deadline: `time.monotonic()` that no wait goes beyond.
    """
    import tenacity

    def stop(state: tenacity.RetryCallState) -> bool:
        wait = state.upcoming_sleep
        late = deadline is not None and time.monotonic() + wait > deadline
        return state.attempt_number >= config.max_attempts or late or wait > LONGEST_WAIT

    backoff = tenacity.wait_random_exponential(config.backoff_seconds, _LONGEST_BACKOFF)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, LLMError) else None
        return max(asked or 0.0, backoff(state))

    return tenacity.Retrying(
        stop=stop,
        wait=wait,
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, LLMError) and e.kind in FAULTS),
        sleep=pause,
        reraise=True,
    )
