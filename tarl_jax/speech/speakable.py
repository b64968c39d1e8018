"""Written text to what a person would say: ids letter by letter, e-mails, money, no markers."""

from __future__ import annotations

import re

_DIGITS = dict(zip("0123456789", "zero one two three four five six seven eight nine".split(),
                   strict=True))
_SYMBOLS = {".": "dot", "_": "underscore", "-": "dash", "+": "plus"}
_MARKER = re.compile(r"###[A-Z][A-Z_-]*###")  # ###STOP### and its like end episodes, unheard
_EMAIL = re.compile(r"[\w.+-]+@\w[\w-]*(?:\.\w[\w-]*)+")
_MONEY = re.compile(r"\$\s?(\d{1,3}(?:,\d{3})+|\d+)(?:\.(\d\d))?(?!\d)")
_ORDER = re.compile(r"(?<!\w)#(\w+)")
_SNAKE = re.compile(r"\b[A-Za-z0-9]+(?:_[A-Za-z0-9]+)+\b")  # user ids, payment methods
_CODE = re.compile(r"\b(?=[A-Z0-9]*[A-Z])(?=[A-Z0-9]*\d)[A-Z0-9]{3,}\b")  # flights, reservations
_PERCENT = re.compile(r"(?<=\d)\s?%")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)-(?=\d)")
# Three digits or more, or a leading zero; not in 1,234 or 3.14, nor an amount.
_NUMBER = re.compile(
    r"(?<![\w,.])(?:\d{3,}|0\d+)(?![\w]|[,.]\d|,\d| (?:dollars?|cents?|percent)\b)"
)


def speakable(text: str) -> str:
    """What is said of a text; "" where nothing is.

    "#W123" becomes "hash W one two three", "ada.li42@mail.com" becomes "ada dot li four two at mail
    dot com", "$1,234.50" becomes "1,234 dollars and 50 cents", and bare numbers of three digits or
    more, which here are ids and zip codes, are said digit by digit. What has been made speakable
    stays as it is.
    """
    text = _MARKER.sub(" ", text)
    text = _EMAIL.sub(lambda m: " at ".join(_spell(part) for part in m[0].split("@")), text)
    text = _MONEY.sub(_money, text)
    text = _ORDER.sub(lambda m: f"hash {_spell(m[1], letters=True)}", text)
    text = _SNAKE.sub(lambda m: _spell(m[0]), text)
    text = _CODE.sub(lambda m: _spell(m[0], letters=True), text)
    text = _PERCENT.sub(" percent", text)
    text = _BETWEEN_DIGITS.sub(", ", text)
    text = _NUMBER.sub(lambda m: _spell(m[0]), text)
    text = text.replace("&", " and ").replace("@", " at ").replace("#", " ").replace("_", " ")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _spell(token: str, letters: bool = False) -> str:
    """Digits and symbols one by one; capitals too where `letters`, else whole words."""
    words = "" if letters and token.upper() == token else "+"
    parts = re.findall(rf"[A-Za-z]{words}|[^A-Za-z]", token)
    return " ".join(_DIGITS.get(part) or _SYMBOLS.get(part) or part for part in parts)


def _money(match: re.Match[str]) -> str:
    whole, cents = match[1].replace(",", ""), match[2]
    amounts = ((int(whole), "dollar"), (int(cents or 0), "cent"))
    said = [f"{n:,} {unit}{'' if n == 1 else 's'}" for n, unit in amounts if n]
    return " and ".join(said) or "0 dollars"
