"""docs/metrics.md names every metric that the code writes, and no other."""

import ast
import re
from pathlib import Path

from documented import rows, undocumented

import tarl_jax
from tarl_jax.judge.user_rules import KINDS
from tarl_jax.llm.ledger import COUNTS

SOURCE = Path(tarl_jax.__file__).parent
ROOMS = "train|eval|rl|rollout|judge|user|reward|maths|seconds"



def written() -> tuple[set[str], set[str], set[str]]:
    """(whole names in the code, beginnings of names that are put together, all words)."""
    whole, begun, words, ends = set(), set(), set(), set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                first, last = node.values[0], node.values[-1]
                if isinstance(last, ast.Constant) and last.value.startswith("_"):
                    ends.add(last.value)
                if isinstance(first, ast.Constant) and re.match(rf"(?:{ROOMS})/", first.value):
                    begun.add(first.value)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(rf"(?:{ROOMS})/[\w^@/]*[a-z0-9]", node.value):
                    whole.add(node.value)
                words.update(re.findall(r"\w+", node.value))
            elif isinstance(node, ast.keyword):
                words.add(node.arg or "")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                words.add(node.target.id)
    if "_max" in ends:  # of the gap, whose name a function gives
        whole |= {"rl/log_prob_gap_max", "rl/staleness_max"}
    return whole, begun, words


def test_every_metric_in_the_code_has_a_row():
    whole, begun, _ = written()
    assert len(whole) > 40 and "eval/pass^" in begun, "the walk sees the names"
    counted = {f"{who}/{name}" for who in ("user", "judge", "eval/user") for name in COUNTS}
    kinds = {f"user/{kind}" for kind in KINDS}
    assert not undocumented(whole | counted | kinds)


def test_every_row_is_a_metric():
    whole, begun, words = written()
    for row in rows():
        name = row.split("…")[0].split("^")[0].split("<")[0]
        if name in words or any(w.startswith(name) for w in whole):
            continue
        start = max((b for b in begun if name.startswith(b)), key=len, default="")
        rest = name.removeprefix(start)
        known = start and (not rest or rest.rstrip("_/") in words)
        assert known, f"docs/metrics.md: nothing writes {row}"
