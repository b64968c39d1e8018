"""What can go wrong with an outside language model, as one family of exceptions."""

from __future__ import annotations

from tarl_jax.config import TarlError

# Worth another attempt: they pass.
FAULTS = ("rate_limited", "server_error", "timeout", "malformed", "connection")
# Every further call would fail in the same way: the run should stop and say so.
FATAL = ("setup", "unauthorized", "not_found", "quota", "budget", "not_recorded", "outage")


class LLMError(TarlError):
    """A call that gave no answer; the message names model, server, reason and remedy.

    kind: one of FAULTS (after the last attempt), one of FATAL, "bad_request",
      "flagged" (the server will not have this one message), "deadline" (the time
      that the caller gave it is over) or "episode_budget".
    retry_after: seconds that the server asks to be left alone, where it says so.
    """

    def __init__(self, kind: str, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after

    @property
    def fatal(self) -> bool:
        """Whether any other call would fail too, so that there is no use in going on."""
        return self.kind in FATAL


class BudgetSpent(LLMError):
    """The run has sent or spent what it may."""

    def __init__(self, message: str):
        super().__init__("budget", message)
