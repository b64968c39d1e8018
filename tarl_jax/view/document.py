"""The page as one document: its style and scripts inside, and for a report the answers, too.

Nothing is fetched from elsewhere, and a content security policy lets nothing else run: what an
episode holds is text, whatever it looks like.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tarl_jax.config import InputError
from tarl_jax.config.plain import dumps
from tarl_jax.view.records import KINDS, Source, answer

FOLDER = Path(__file__).parent / "page"
SCRIPTS = ("helpers.js", "charts.js", "episodes.js", "page.js")
MIME = {".flac": "audio/flac", ".wav": "audio/wav"}


def document(data: Any = None) -> str:
    """The page. data: the answers that it holds itself; None: it asks the server."""
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    policy = "; ".join((
        "default-src 'none'", f"script-src '{_digest(script)}'", f"style-src '{_digest(style)}'",
        "media-src 'self' data:", "img-src data:", "connect-src 'self'", "base-uri 'none'",
        "form-action 'none'",
    ))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tarl_jax</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header></header>
<main><div class="empty">Reading …</div></main>
<noscript>This page needs JavaScript.</noscript>
<script type="application/json" id="data">{_inside_markup(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def report(sources: Sequence[Source], files: int = 2) -> str:
    """One self-contained document: curves, evaluations, and the last files of episodes.

    files: of each kind and run, how many, the last ones.
    Raises InputError where a run cannot be read.
    """
    states = answer(sources, "state")
    answers: dict[str, Any] = {}
    clips: dict[str, str] = {}
    for run, (state, source) in enumerate(zip(states, sources, strict=True)):
        if "problem" in state:
            raise InputError(state["problem"])
        state["live"] = False
        answers[f"metrics/{run}"] = source.metrics()
        for kind in KINDS:
            state["files"][kind] = state["files"][kind][-files:]
            for step in state["files"][kind]:
                listed = source.episodes(kind, step)
                answers[f"episodes/{run}/{kind}/{step}"] = listed
                for index in range(len(listed)):
                    whole = source.episode(kind, step, index)
                    answers[f"episode/{run}/{kind}/{step}/{index}"] = whole
                    clips |= _clips(run, source, whole)
    return document({"answers": {"state": states, **answers}, "clips": clips})


def _clips(run: int, source: Source, episode: Mapping[str, Any]) -> dict[str, str]:
    """The sound of an episode as data addresses, by "RUN/NAME"; without clips that are gone."""
    found = {}
    for segment in episode["segments"]:
        if segment["sound"]:
            path = source.clip(segment["sound"]["clip"])
            if path.is_file():
                data = base64.b64encode(path.read_bytes()).decode()
                found[f"{run}/{path.name}"] = f"data:{MIME[path.suffix]};base64,{data}"
    return found


def _inside_markup(data: Any) -> str:
    """JSON without a character that could end the element around it."""
    return dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
