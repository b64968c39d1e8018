"""The knobs of what is asked of outside language models, and what they refuse.

docs/llm.md says how to use them. `tarl_jax.config` holds `UserConfig` as its group `user`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tarl_jax.config.servers import check_server

STRATEGIES = ("llm", "react", "verify", "reflection")
RESPONSE_FORMATS = ("schema", "object", "none")  # each asks less of a server than the one before


@dataclasses.dataclass(frozen=True)
class LLMConfig:
    """A language model behind the OpenAI protocol, and how hard it may be asked.

    model: its name, as the server knows it.
    base_url: of the server; empty: OpenAI's own.
    api_key_env: the NAME of the environment variable that holds the key; empty: the server takes
      none. The key itself is never part of a config.
    temperature: below 0: left to the server.
    max_tokens: of one answer; 0: left to the server.
    response_format: how a server is asked for JSON, where JSON is wanted: "schema" (it must fit a
      schema), "object" (any JSON object), "none" (in words alone). A server that refuses one is
      asked with the next.
    timeout_seconds: of one request, by the wall clock; one that hangs is dropped.
    max_attempts: of one call, the first included.
    backoff_seconds: the wait before the second attempt; it doubles from one to the next.
    requests_per_minute, tokens_per_minute: how fast; 0: no limit.
    max_calls, max_usd: what one start of a run may send (repeated attempts included) and spend (at
      the two prices); 0: no limit.
    cache_dir: folder of answers that all runs share; empty: none.
    record: JSON-lines file that every answer is added to, and answered from where it is there.
    replay: such a file, which answers everything; nothing is sent.
    """

    model: str = "gpt-4.1"
    base_url: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float = 1.0
    max_tokens: int = 1024
    response_format: str = "schema"
    timeout_seconds: float = 60.0
    max_attempts: int = 5
    backoff_seconds: float = 1.0
    max_in_flight: int = 32  # requests under way at once
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_calls: int = 0
    max_usd: float = 0.0
    usd_per_million_input: float = 0.0  # price of tokens sent
    usd_per_million_output: float = 0.0  # price of tokens received
    cache_dir: str = ""
    record: str = ""
    replay: str = ""


@dataclasses.dataclass(frozen=True)
class UserConfig:
    """Who plays the user.

    kind: "scripted" (follows the task's script, needs nothing) or "llm" (`llm`, told the task's
      hidden instruction).
    strategy: of the language model, as in tau-bench (arXiv 2406.12045): "llm" (one call a
      message), "react" (thinks before it speaks), "verify" (a second call looks at each message,
      which is written anew if it is bad), "reflection" (the same, and says why before).
    check: whether each episode of the language model is looked through for faults of the user:
      "rules", by rule, or by the judge, if that is a language model, where the task gives rules too
      little to go by; "judge": by both; "off".
    leave_out_faults: an episode whose user was at fault teaches nothing.
    stop_waits: a user that agrees and ends the dialogue in one message ("Yes, please. ###STOP###")
      ends it with its next message, so that the agent can do what was agreed on; False: at once, as
      in the benchmarks.
    max_calls, max_seconds: of one episode; beyond them it ends as broken.
    """

    kind: str = "scripted"
    strategy: str = "llm"
    stop_waits: bool = True
    check: str = "rules"
    leave_out_faults: bool = True
    max_calls: int = 200
    max_seconds: float = 600.0
    llm: LLMConfig = LLMConfig()


Require = Callable[[bool, str, Any, str], None]
Choice = Callable[[str, str, tuple[str, ...]], None]


def check_user(user: UserConfig, require: Require, choice: Choice) -> None:
    """Asks `require` and `choice` of `config.checks` about the group `user`."""
    choice("user.kind", user.kind, ("scripted", "llm"))
    choice("user.strategy", user.strategy, STRATEGIES)
    choice("user.check", user.check, ("rules", "judge", "off"))
    require(user.max_calls > 0, "user.max_calls", user.max_calls, "must be at least 1")
    require(user.max_seconds > 0, "user.max_seconds", user.max_seconds, "must be above 0")
    check_llm("user.llm", user.llm, require, choice)


def check_llm(prefix: str, llm: LLMConfig, require: Require, choice: Choice) -> None:
    """Asks `require` and `choice` about every field of a group of this kind, named `prefix`."""
    choice(f"{prefix}.response_format", llm.response_format, RESPONSE_FORMATS)
    check_server(prefix, llm.base_url, llm.api_key_env, require)
    require(bool(llm.model), f"{prefix}.model", llm.model, "name the model")
    for name in ("timeout_seconds", "max_attempts", "max_in_flight"):
        value = getattr(llm, name)
        require(value > 0, f"{prefix}.{name}", value, "must be above 0")
    for name in ("max_tokens", "backoff_seconds", "requests_per_minute", "tokens_per_minute",
                 "max_calls", "max_usd", "usd_per_million_input", "usd_per_million_output"):
        value = getattr(llm, name)
        require(value >= 0, f"{prefix}.{name}", value, "must be at least 0")
    require(not llm.max_usd or llm.usd_per_million_input + llm.usd_per_million_output > 0,
            f"{prefix}.max_usd", llm.max_usd,
            f"needs {prefix}.usd_per_million_input and {prefix}.usd_per_million_output")
    require(not (llm.record and llm.replay), f"{prefix}.replay", llm.replay,
            f"choose one of {prefix}.record and {prefix}.replay")
