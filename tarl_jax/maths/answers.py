"""What a solution's final answer is, and whether two plain numbers are the same.

A solution gives its answer in LaTeX's `\\boxed{…}`; where there are several, the last one counts.
Without a box, what follows the last "answer is" or "answer:" on its line is taken.
"""

from __future__ import annotations

import re
from fractions import Fraction

_BOX = re.compile(r"\\boxed\s*\{")
_SAID = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*:)[ \t]*([^\n]+)", re.I)
# Dollars, LaTeX's spaces and what only decorates a number.
_DECORATION = re.compile(r"\\[,;! ]|\\left|\\right|\\\$|\$|\s+")
_EQUATION = re.compile(r"^[A-Za-z]=")
_THOUSANDS = re.compile(r"^-?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?$")
_DECIMAL = r"(-?[0-9]{1,40}(?:\.[0-9]{1,40})?|-?\.[0-9]{1,40})"
_NUMBER = re.compile(rf"^{_DECIMAL}$")
_RATIO = re.compile(rf"^{_DECIMAL}/{_DECIMAL}$")
_FRACTION = re.compile(rf"^(-?)\\[dt]?frac\{{{_DECIMAL}\}}\{{{_DECIMAL}\}}$")


def final_answer(solution: str) -> str | None:
    """The answer that a solution ends with, as it is written; None if it gives none."""
    boxes = list(_BOX.finditer(solution))
    if boxes:
        return _braced(solution, boxes[-1].end())
    said = _SAID.findall(solution)
    return said[-1].strip().removesuffix(".").strip() or None if said else None


def number(text: str) -> Fraction | None:
    """The exact value of a plain number: an integer, a decimal, a fraction; None for others.

    A leading "x =", dollar signs and commas between thousands do not matter.
    """
    text = _EQUATION.sub("", _DECORATION.sub("", text))
    if _THOUSANDS.match(text):
        text = text.replace(",", "")
    if found := _NUMBER.match(text):
        return Fraction(found[1])
    if found := _RATIO.match(text):
        sign, above, below = "", found[1], found[2]
    elif found := _FRACTION.match(text):
        sign, above, below = found[1], found[2], found[3]
    else:
        return None
    if not Fraction(below):
        return None
    return Fraction(above) / Fraction(below) * (-1 if sign else 1)


def same_number(given: str, right: str) -> bool:
    """Whether both are plain numbers of one value."""
    value = number(given)
    return value is not None and value == number(right)


def _braced(text: str, start: int) -> str | None:
    """The text from `start` up to the brace that closes the one before it."""
    depth = 1
    for place in range(start, len(text)):
        if text[place] in "{}" and text[place - 1] != "\\":
            depth += 1 if text[place] == "{" else -1
        if not depth:
            return text[start:place].strip() or None
    return None
