"""The names of metrics in docs/metrics.md."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def rows() -> list[str]:
    """Names in the first column, in full: `/turns` behind `rollout/waits` is `rollout/turns`."""
    found, room = [], ""
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("| `"):
            for name in re.findall(r"`([^`]+)`", line.split(" | ")[0]):
                name = room + name if name.startswith("/") else name
                room = name.rpartition("/")[0]
                found.append(name)
    return found


def pattern(row: str) -> re.Pattern[str]:
    """What a row stands for, the ends of an interval among them."""
    text = re.escape(row).replace(re.escape("^k"), r"\^\d+").replace("…", ".+")
    return re.compile(text + "(?:_low|_high)?")


def plain(name: str) -> str:
    """The name whose row says what this one is: what language models were asked is counted alike
    for users and judges, in evaluations too; spoken evaluations have what written ones have."""
    name = re.sub(r"^eval/spoken/.+?/(judge/\w+|[^/]+)$", r"eval/\1", name)
    name = re.sub(r"^eval/(user|judge)/", r"\1/", name)
    return name


def undocumented(names: set[str]) -> list[str]:
    """Those that no row names."""
    known = [pattern(row) for row in rows()]
    own = [n for n in names if not any(p.fullmatch(plain(n)) for p in known)]
    return sorted(n for n in own
                  if not any(p.fullmatch(re.sub("^judge/", "user/", plain(n))) for p in known))
