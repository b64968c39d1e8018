"""Text from outside, made plain where it comes in: files, answers of servers, calls of models.

What has passed here is text that every encoder takes, and JSON that every reader takes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from tarl_jax.config.errors import InputError, MissingFileError

MAX_DEPTH = 100  # of arrays and objects inside one another; Python's own writer fails at 1,000


def plain(text: str) -> str:
    """The text with U+FFFD for each half of a character (a lone surrogate), which no encoder takes.

    JSON may hold such halves as escapes; two that belong together become their character.
    """
    if _encodes(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def loads(text: str | bytes) -> Any:
    """The value of a JSON text, its strings plain; a byte order mark before it does not matter.

    Raises ValueError for no JSON, for NaN and Infinity (which Python takes for JSON), for a number
    that is too large for a float, and for nesting deeper than MAX_DEPTH.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        found = _DECODER.decode(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _measure(found, 0)
    return _mapped(found) if _HALF.search(text) or not _encodes(text) else found


def dumps(value: Any) -> str:
    """One line of JSON in ASCII; numbers that are none become "NaN", "Infinity" or "-Infinity".

    `float` reads these words back. Raises TypeError for what JSON cannot hold.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_worded(value), allow_nan=False)


def read_text(path: Path) -> str:
    """A file's text, in UTF-8 with or without a byte order mark, its line ends as they are.

    Raises InputError naming the file where it cannot be read or is in another encoding.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: is not there") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is no UTF-8: save it as UTF-8") from None


def read_json(path: Path, kind: type = object) -> Any:
    """The JSON of a file. Raises InputError naming file, and line where it is known.

    kind: dict or list, where it has to hold one.
    """
    text = read_text(path)
    try:
        found = loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(found, kind):
        wanted = "an object {…}" if kind is dict else "a list […]"
        raise InputError(f"{path}: holds {found!r:.40} where {wanted} is expected")
    return found


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file:number", line) of a file of JSON lines, without those that are blank.

    Only a line feed ends a line: strings of JSON may hold the other characters that do elsewhere
    (U+2028, U+0085). Raises InputError as `read_text`.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", line


def without_thoughts(text: str) -> str:
    """An outside model's answer without what it thought in `<think>` or `<thinking>`.

    A closing tag whose opening one stands in the prompt ends a thought too. In linear time. Raises
    ValueError for a thought without an end.
    """
    kept: list[str] = []
    begun, thinking = 0, False
    for tag in _TAG.finditer(text):
        if tag[1]:  # closes
            if not thinking:
                kept.clear()
            thinking, begun = False, tag.end()
        elif not thinking:
            kept.append(text[begun : tag.start()])
            thinking = True
    if thinking:
        raise ValueError("has an unfinished <think>")
    return "".join([*kept, text[begun:]])


_TAG = re.compile(r"<(/?)think(?:ing)?>", re.I)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # the escape of half a character
_TOO_DEEP = f"more than {MAX_DEPTH} arrays and objects inside one another"


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def _measure(value: Any, depth: int) -> None:
    """Raises ValueError for nesting that is too deep."""
    if isinstance(value, list | dict):
        if depth == MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, list | dict):
                _measure(item, depth + 1)


def _mapped(value: Any) -> Any:
    """The value with plain strings."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [_mapped(item) for item in value]
    if isinstance(value, dict):
        return {plain(key): _mapped(item) for key, item in value.items()}
    return value


def _worded(value: Any) -> Any:
    """The value with words for numbers that are none."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list | tuple):
        return [_worded(item) for item in value]
    if isinstance(value, dict):
        return {key: _worded(item) for key, item in value.items()}
    return value
