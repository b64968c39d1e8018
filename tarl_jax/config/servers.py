"""What a config may say of a server: where it is, and which variable holds its key.

A key is in the environment alone. What could hold one by mistake is refused, without being shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tarl_jax.config.errors import InputError

HIDDEN = "(not shown: it may hold a secret)"
_SECRET_NAME = re.compile(r"key|token|secret|sig|pass|auth|pwd|cred|code", re.I)
_SHORTEST = 8  # characters of a key that is masked: "none" and "EMPTY" are words


def check_server(
    prefix: str, base_url: str, api_key_env: str, require: Callable[[bool, str, Any, str], None]
) -> None:
    """Asks `require` of `config.checks` about the two fields of a group."""
    variable = not api_key_env or re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_env)
    require(bool(variable) and not _looks_secret(api_key_env), f"{prefix}.api_key_env", HIDDEN,
            "give the NAME of an environment variable, such as OPENAI_API_KEY, not the key")
    remedy = f"put the key in the environment variable that {prefix}.api_key_env names"
    try:
        url = urlsplit(base_url)
        _ = url.port
    except ValueError as error:
        require(False, f"{prefix}.base_url", HIDDEN, f"is no address ({_bare(str(error))})")
        return
    require("@" not in url.netloc, f"{prefix}.base_url", HIDDEN,
            f"leave the name and password out, and {remedy}")
    secret = url.fragment or _holds_secret(url.path, url.query)
    require(not secret, f"{prefix}.base_url", HIDDEN, f"leave out what looks like a key, and"
            f" {remedy}")
    plain = base_url.isascii() and base_url.isprintable() and " " not in base_url
    require(not base_url or (url.scheme in ("http", "https") and bool(url.hostname) and plain),
            f"{prefix}.base_url", HIDDEN if "@" in base_url else base_url,
            "should look like http://localhost:8000/v1")


def key_in(variable: str) -> str:
    """The key that the environment has under that name, without white space around; "": none.

    Raises InputError, which does not show it, for one that no header can carry.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"the environment variable {variable}: holds characters that no key has;"
                         " copy the key again")
    return key


def masked(text: str, key: str) -> str:
    """The text with "***" for the key, wherever a server has repeated it."""
    return text.replace(key, "***") if len(key) >= _SHORTEST else text


def _holds_secret(path: str, query: str) -> bool:
    named = any(_SECRET_NAME.search(name) for name, _ in parse_qsl(query, keep_blank_values=True))
    # A path may hold the long number of an account.
    return named or any(map(_begins_as_key, path.split("/"))) or any(
        _looks_secret(value) for _, value in parse_qsl(query)
    )


def _begins_as_key(text: str) -> bool:
    begins = re.match(r"(sk|pk|rk|gsk|xai|hf|r8|AIza|AKIA|ghp|glpat)[-_]?[A-Za-z0-9_-]{12,}", text)
    return bool(begins and re.search(r"\d", text))


def _looks_secret(text: str) -> bool:
    """Whether a word is a key by its looks: the usual beginnings, or long and without sense."""
    if _begins_as_key(text):
        return True
    longest = max(re.split(r"[_.-]", text), key=len)
    mixed = re.search(r"\d", longest) and re.search(r"[A-Za-z]", longest)
    return len(longest) >= 24 and bool(mixed)


def _bare(reason: str) -> str:
    """What is wrong with an address, without what stands in it."""
    return re.sub(r"['\"].*['\"]", "…", reason)
