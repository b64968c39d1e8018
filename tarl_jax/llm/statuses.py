"""What a server's refusal means: by its status, and by the words that came with it."""

from __future__ import annotations

import re

# Servers differ in the status that they give these; their words are more alike.
_UNPAID = re.compile(
    r"insufficient[ _](?:quota|balance|credit|funds)|billing_|credit balance|payment required"
    r"|out of credits", re.I
)
_FLAGGED = re.compile(
    r"moderation|flagged|content[ _](?:filter|policy|management)|safety (?:system|policy|filter)"
    r"|policy_violation|responsibleai|data_inspection_failed|inappropriate content", re.I
)


def kind_of(status: int, text: str, prefix: str) -> tuple[str, str]:
    """(the kind of `LLMError`, what may help) for a status other than 200.

    text: the server's words; prefix: where the model's config stands, "config.user.llm".
    """
    if status == 402 or (status < 500 and _UNPAID.search(text)):
        return "quota", "the account has nothing left: pay, or raise its limit"
    if status == 429:
        return "rate_limited", (f"lower {prefix}.requests_per_minute, {prefix}.tokens_per_minute"
                                f" or {prefix}.max_in_flight")
    if status >= 500 or status in (409, 425):
        return "server_error", ""
    if status == 408:
        return "timeout", ""
    if status in (400, 403, 422, 451) and _FLAGGED.search(text):
        return "flagged", "the server will not answer this message; another one may pass"
    if status in (401, 403):
        return "unauthorized", f"look at the key, whose variable is {prefix}.api_key_env"
    if status == 404:
        return "not_found", (f"look at {prefix}.model and {prefix}.base_url, which should end where"
                             " /chat/completions begins")
    return "bad_request", (f"the server takes no such request: it may not know a field (leave one"
                           f" out by {prefix}.temperature=-1, {prefix}.max_tokens=0), or the"
                           " dialogue is too long for it")
