"""What a solution's final answer is, and whether two plain numbers are the same.

A solution gives its answer in LaTeX's `\\boxed{…}`; where there are several, the last one that is
not empty counts. Without a box, what follows the last "answer is", "answer:" or heading "Final
answer" is taken, up to the end of its sentence. White space separates: 1 1/4 is 5/4, and 4 10 is
no number.
"""

from __future__ import annotations

import re
from fractions import Fraction

_BOX = re.compile(r"\\boxed(?:\s*(\{)|\s+([^\s{}\\$]+)|([0-9][^\s{}\\$]*))")
_EMPTY_BOX = re.compile(r"\\boxed\s*\{\s*\}")
_BOLD = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(])")  # not that of 2**3
_SAID = re.compile(
    r"\banswer(?:\s+is\b\s*:?|\s*:)|^[ \t#]*(?:the[ \t]+)?(?:final[ \t]+)?answer[ \t]*$",
    re.I | re.M,
)
_SENTENCE = re.compile(r"\.\s(?=\s?[A-Z])")
_REASON = re.compile(r"[,\s]\s?(?:since|because)\b|,\s?(?:as|which|where|so)\b", re.I)
_NOTHING = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\\$|\$|\\!")  # only decorates
_SPACE = re.compile(r"(?<!\\)\\[,; ]|~|\s+")
_GROUPS = re.compile(r"(?<=[0-9])(?:\\,|\{,\}\\?!?)(?=[0-9]{3}(?![0-9]))")  # thousands in LaTeX
_AROUND = re.compile(r"\s*([{}/])\s*")
_EQUATION = re.compile(r"^[A-Za-z] ?= ?")
_THOUSANDS = re.compile(r"^-?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?$")
_DECIMAL = r"(-?[0-9]{1,40}(?:\.[0-9]{1,40})?|-?\.[0-9]{1,40})"
_NUMBER = re.compile(rf"^{_DECIMAL}$")
_RATIO = re.compile(rf"^{_DECIMAL}/{_DECIMAL}$")
_FRACTION = re.compile(rf"^(-?)\\[dt]?frac\{{{_DECIMAL}\}}\{{{_DECIMAL}\}}$")
_WHOLE = r"([0-9]{1,40})"
_MIXED = re.compile(
    rf"^(-?){_WHOLE}(?: {_WHOLE}/{_WHOLE}| ?\\[dt]?frac\{{{_WHOLE}\}}\{{{_WHOLE}\}})$"
)
_MIXED_INSIDE = re.compile(r"(?<![\w.}^])([0-9]{1,40}) +([0-9]{1,40}) ?/ ?([0-9]{1,40})(?![\w.])")
_APART = re.compile(r"(?<=[0-9]) +(?=[0-9])")
_LETTERS = re.compile(r"^(?:\\(?:text|mathrm|textbf|mathbf)\{)?\(?([A-Za-z][A-Za-z ]*)\)?\}?$")


def final_answer(solution: str) -> str | None:
    """The answer that a solution ends with, as it is written; None if it gives none."""
    for box in reversed(list(_BOX.finditer(solution))):
        if not box[1]:
            return _without_stop((box[2] or box[3]).rstrip(",;:")) or None
        content = _braced(solution, box.end())
        if content is None or content.strip():
            return content and content.strip()
    plain = _BOLD.sub("", _EMPTY_BOX.sub("", solution))
    for said in reversed(list(_SAID.finditer(plain))):
        line = plain[said.end() :].lstrip().partition("\n")[0]
        found = _REASON.split(_SENTENCE.split(line, maxsplit=1)[0], maxsplit=1)[0]
        if found := _without_stop(found.strip(" \t#:,;")):
            return found
    return None


def number(text: str) -> Fraction | None:
    """The exact value of a plain number: an integer, decimal, fraction, mixed number; else None.

    A leading "x =", dollar signs, commas between thousands and a final full stop do not matter.
    """
    text = _without_stop(spaced(text).strip())
    text = _EQUATION.sub("", _AROUND.sub(r"\1", text))
    text = f"-{text[1:].lstrip()}" if text.startswith("-") else text
    if _THOUSANDS.match(text):
        text = text.replace(",", "")
    if found := _NUMBER.match(text):
        return Fraction(found[1])
    whole = 0
    if found := _RATIO.match(text):
        sign, above, below = "", found[1], found[2]
    elif found := _FRACTION.match(text):
        sign, above, below = found[1], found[2], found[3]
    elif found := _MIXED.match(text):
        sign, whole = found[1], int(found[2])
        above, below = found[3] or found[5], found[4] or found[6]
    else:
        return None
    if not Fraction(below):
        return None
    return (whole + Fraction(above) / Fraction(below)) * (-1 if sign else 1)


def same_number(given: str, right: str) -> bool:
    """Whether both are plain numbers of one value."""
    value = number(given)
    return value is not None and value == number(right)


def letters(text: str) -> str | None:
    """A text of letters alone, such as a choice or a word; None for anything else.

    Of words the case does not matter, of one letter it does.
    """
    found = _LETTERS.match(_without_stop(spaced(text).strip()))
    if not found:
        return None
    word = found[1].strip()
    return word if len(word) == 1 else word.lower()


def spaced(text: str) -> str:
    """The text without what only decorates it, and with one space for each kind of white space."""
    return _SPACE.sub(" ", _NOTHING.sub("", _GROUPS.sub("", text.replace("\u2212", "-"))))


def separated(text: str) -> str:
    """The text in a form in which no white space is lost: mixed numbers as sums, commas in lists.

    For readers that drop white space, and so take 4 10 for 410.
    """
    text = _MIXED_INSIDE.sub(r"(\1+\2/\3)", _without_stop(spaced(text).strip()))
    return _APART.sub(", ", text)


def _without_stop(text: str) -> str:
    """Without the full stop at its end, which is no digit."""
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text


def _braced(text: str, start: int) -> str | None:
    """The text from `start` up to the brace that closes the one before it; None if none does."""
    depth = 1
    for place in range(start, len(text)):
        if text[place] in "{}" and text[place - 1] != "\\":
            depth += 1 if text[place] == "{" else -1
        if not depth:
            return text[start:place]
    return None
