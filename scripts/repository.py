"""Writes the repository's address wherever it stands: notebooks, badges, docs, metadata.

    python scripts/repository.py                                  # what it is, and where
    python scripts/repository.py https://github.com/YOU/tarl_jax  # makes it that, for a fork

The constant is `REPOSITORY` in setup.py; everything else is found by it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTANT = re.compile(r'^REPOSITORY = "https://github\.com/([\w.-]+/[\w.-]+)"', re.M)
FORM = re.compile(r"https://github\.com/([A-Za-z0-9][\w-]*/[\w.-]+?)(?:\.git)?/?")
PATTERNS = ("setup.py", "*.md", "CITATION.cff", "docs/*.md", "colabs/*.ipynb")
# Where Colab finds a repository's notebooks.
PLACES = ("https://github.com/{}", "https://colab.research.google.com/github/{}")


def current(root: Path = ROOT) -> str:
    """OWNER/NAME as setup.py has it."""
    found = CONSTANT.search((root / "setup.py").read_text("utf-8"))
    if not found:
        raise SystemExit(f"error: {root / 'setup.py'} has no line REPOSITORY = \"https://…\"")
    return found[1]


def mentions(root: Path, name: str) -> dict[Path, int]:
    """How often each file names the repository OWNER/NAME by an address."""
    counts = {path: len(_addresses(name).findall(path.read_text("utf-8")))
              for pattern in PATTERNS for path in sorted(root.glob(pattern))}
    return {path: count for path, count in counts.items() if count}


def rewrite(root: Path, url: str) -> dict[Path, int]:
    """Makes `url` the address everywhere; returns what `mentions` counted before."""
    form = FORM.fullmatch(url)
    if not form:
        raise SystemExit(f"error: {url}: give https://github.com/OWNER/NAME")
    old = current(root)
    found = mentions(root, old)
    for path in found:
        text = path.read_text("utf-8")
        path.write_text(_addresses(old).sub(lambda m: m[1] + form[1], text), "utf-8")
    return found


def _addresses(name: str) -> re.Pattern[str]:
    starts = "|".join(re.escape(place.format("")) for place in PLACES)
    return re.compile(rf"({starts}){re.escape(name)}(?![\w-])")


def main() -> None:
    if len(sys.argv) > 2 or sys.argv[1:] in (["-h"], ["--help"]):
        raise SystemExit(__doc__)
    found = rewrite(ROOT, sys.argv[1]) if len(sys.argv) == 2 else mentions(ROOT, current())
    print(f"https://github.com/{current()}")
    for path, count in found.items():
        print(f"{count:3} in {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
