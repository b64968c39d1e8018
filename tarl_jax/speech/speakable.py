"""Written text to what a person would say: ids letter by letter, e-mails, money, no markers."""

from __future__ import annotations

import re

_DIGITS = dict(zip("0123456789", "zero one two three four five six seven eight nine".split(),
                   strict=True))
_SYMBOLS = {".": "dot", "_": "underscore", "-": "dash", "+": "plus"}
_MARKER = re.compile(r"###[A-Z][A-Z_-]*###")  # ###STOP### and its like end episodes, unheard
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@\w[\w-]*(?:\.\w[\w-]*)+")
_MONEY = re.compile(
    r"((?<!\w)-)?\$\s?(-\s?)?(\d{1,3}(?:,\d{3})+|\d+)(?:\.(\d+))?(?!\d)"
    r"(?:\s?(hundred|thousand|million|billion|[kKMB])\b)?"
)
_SCALES = {"k": "thousand", "K": "thousand", "M": "million", "B": "billion"}
_HOURS = r"\d?\d:[0-5]\d"
_TIMES = re.compile(
    rf"({_HOURS}(?:\s?[ap]\.?m\.?)?)\s?[-\u2013]\s?(?={_HOURS})", re.I
)
_UNIT = r"(?:[KMGT]B|[KMG]?HZ|ML|[CKM]M|KG|LBS?|OZ|FT|MAH|KW)"
_MEASURE = re.compile(rf"\b(\d+)({_UNIT})\b", re.I)  # 16GB
_ORDER = re.compile(r"(?<!\w)#(\w+)")
_SNAKE = re.compile(r"\b[A-Za-z0-9]+(?:_[A-Za-z0-9]+)+\b")  # user ids, payment methods
_CODE = re.compile(r"\b(?=[A-Z0-9]*[A-Z])(?=[A-Z0-9]*\d)[A-Z0-9]{3,}\b")  # flights, reservations
_PERCENT = re.compile(r"(?<=\d)\s?%")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)-(?=\d)")
# Three digits or more, or a leading zero; not in 1,234 or 3.14, nor an amount.
_NUMBER = re.compile(
    r"(?<![\w,.])(?<!\d:)(?:\d{3,}|0\d+)(?![\w]|[,.:]\d| (?:dollars?|cents?|percent)\b"
    rf"| (?:hundred|thousand|million|billion)\b| {_UNIT}\b)"
)


def speakable(text: str) -> str:
    """What is said of a text; "" where nothing is.

    "#W123" becomes "hash W one two three", "ada.li42@mail.com" becomes "ada dot li four two at mail
    dot com", "$1,234.5" becomes "1,234 dollars and 50 cents", and bare numbers of three digits or
    more, which here are ids and zip codes, are said digit by digit. Times stay as they are, and so
    does what has been made speakable.
    """
    text = _MARKER.sub(" ", text)
    text = _EMAIL.sub(lambda m: " at ".join(_spell(part) for part in m[0].split("@")), text)
    text = _MONEY.sub(_money, text)
    text = _TIMES.sub(r"\1 to ", text)
    text = _ORDER.sub(lambda m: f"hash {_spell(m[1], letters=True)}", text)
    text = _SNAKE.sub(lambda m: _spell(m[0]), text)
    text = _MEASURE.sub(r"\1 \2", text)
    text = _CODE.sub(lambda m: _spell(m[0], letters=True), text)
    text = text.replace("_", " ")
    text = _PERCENT.sub(" percent", text)
    text = _BETWEEN_DIGITS.sub(", ", text)
    text = _NUMBER.sub(lambda m: _spell(m[0]), text)
    text = text.replace("&", " and ").replace("@", " at ").replace("#", " ")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _spell(token: str, letters: bool = False) -> str:
    """Digits and symbols one by one; capitals too where `letters`, else whole words."""
    words = "" if letters and token.upper() == token else "+"
    parts = re.findall(rf"[A-Za-z]{words}|[^A-Za-z]", token)
    return " ".join(_DIGITS.get(part) or _SYMBOLS.get(part) or part for part in parts)


def _money(match: re.Match[str]) -> str:
    whole, decimals = match[3].replace(",", ""), (match[4] or "").rstrip("0")
    minus = "minus " if match[1] or match[2] else ""
    scale = _SCALES.get(match[5], match[5]) if match[5] else ""
    if scale or len(decimals) > 2:
        number = f"{int(whole):,}" + (f".{decimals}" if decimals else "")
        return f"{minus}{number} {scale} dollars".replace("  ", " ")
    amounts = ((int(whole), "dollar"), (int(decimals.ljust(2, "0") or 0), "cent"))
    said = [f"{n:,} {unit}{'' if n == 1 else 's'}" for n, unit in amounts if n]
    return minus + " and ".join(said) if said else "0 dollars"
