"""Ways of crediting turns that `training.rank` compares, each as a config of a run has it."""

from __future__ import annotations

import dataclasses
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tarl_jax.config import ConfigError, InputError, MissingFileError, RunConfig, from_config_dict
from tarl_jax.rl.calibration import load_table
from tarl_jax.runs.command import load_parts
from tarl_jax.training.parts import Parts, checked
from tarl_jax.types import Trajectory

BASELINE = "verdict, undivided"
Groups = Sequence[Sequence[Trajectory]]


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of crediting turns.

    Attributes:
      reward, rl: fields of these groups of the config.
      needs: what it takes beside the verdict.
      table: whether it has a table of calibrated turns, which is made of the other half's tasks.
    """

    reward: Mapping[str, Any]
    rl: Mapping[str, Any]
    needs: str
    table: bool


def _way(
    placement: str, normalise: str, needs: str = "judge", *, advantage: str = "grpo",
    table: bool = False, **reward: Any,
) -> Way:
    """Says every field that tells ways apart, so that a name means the same under any defaults."""
    said = {"placement": placement, "denominator": "expert", "turn_weight": 0.0,
            "episode_weight": 0.0, "stage_judge": True, **reward}
    return Way(said, {"advantage": advantage, "normalise": normalise}, needs, table)


_WHOLE = "trajectory"
WAYS = {
    BASELINE: _way("terminal", "none", "nothing"),
    "verdict, divided (GRPO)": _way("terminal", "group", "nothing"),
    "verdict, RLOO": _way("terminal", "none", "nothing", advantage="rloo"),
    "verdict, GiGPO": _way("terminal", "group", "gold calls", advantage="gigpo", turn_weight=1.0),
    "goals, by stage": _way("stage", "scale", "gold calls", stage_judge=False),
    "TARL, as published": _way(_WHOLE, "group", denominator="taken"),
    "TARL, divided": _way(_WHOLE, "group"),
    "TARL, undivided": _way(_WHOLE, "none"),
    "TARL, batch": _way(_WHOLE, "batch"),
    "TARL, calibrated": _way(_WHOLE, "group", "judge, table", table=True),
    "TARL, GiGPO": _way(_WHOLE, "group", "judge, gold", advantage="gigpo", turn_weight=1.0),
    "TARL, GDPO": _way(_WHOLE, "batch", advantage="gdpo"),
    "TARL, MT-GRPO": _way(_WHOLE, "group", advantage="mt_grpo", turn_weight=1.0),
    "TARL, return to go": _way(_WHOLE, "scale", advantage="return_to_go"),
    "TARL + turns": _way(_WHOLE, "group", turn_weight=0.5),
    "TARL + turns, scale": _way(_WHOLE, "scale", turn_weight=0.5),
    "TARL + turns, calibrated": _way(
        _WHOLE, "group", "judge, table", turn_weight=0.5, table=True
    ),
    "stage credit": _way("stage", "scale", "judge, gold"),
    "stage credit + TARL": _way("stage", "scale", "judge, gold", episode_weight=1.0),
    "PPO": _way(_WHOLE, "batch", "value model", advantage="gae"),
}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way that the episodes can be credited by. table: None, its own one, or made per half."""

    config: RunConfig
    needs: str
    parts: Parts = dataclasses.field(default_factory=Parts)
    table: Mapping[str, float] | None = None
    made: bool = False


def candidates(
    groups: Groups, own: Sequence[Path]
) -> tuple[dict[str, Candidate], dict[str, str]]:
    """What can be ranked on the groups, the baseline first, and why not the others."""
    size = len(groups[0])
    found, left_out = {}, {}
    episodes = [t for g in groups for t in g]
    judged = any(t.turn_scores is not None for t in episodes)
    scripted = all(t.task.script is not None for t in episodes)
    told = not any(
        s.info.get("wrote") and "fulfilled" not in s.info for t in episodes for s in t.segments
    )
    for name, way in WAYS.items():
        needs_told = way.rl.get("advantage") == "gigpo" or (
            way.reward.get("placement") == "stage" and not scripted
        )
        if way.rl.get("advantage") == "gae":
            left_out[name] = "needs a value model"
        elif "judge" in way.needs and not judged:
            left_out[name] = "needs a judge, and no episode is judged (--judge rules, FILE.json)"
        elif needs_told and not told:
            left_out[name] = "needs episodes that tell after each write which goals are fulfilled"
        else:
            reward = dict(way.reward) | ({"calibration": "of the other half"} if way.table else {})
            try:
                config = from_config_dict({
                    "reward": reward, "rl": dict(way.rl), "rollout": {"group_size": size},
                })
            except ConfigError as error:
                left_out[name] = str(error)
            else:
                found[name] = Candidate(config, way.needs, made=way.table)
    for path in own:
        name, candidate = _own(path, size)
        name = str(path) if name in found else name
        if candidate.config.rl.advantage == "gae" and not candidate.parts.advantage:
            left_out[name] = "needs a value model"
        else:
            found[name] = candidate
    return found, left_out


def _own(path: Path, size: int) -> tuple[str, Candidate]:
    """The way of a config file, with an argument behind a colon like that of `tarl_jax.main`."""
    file, _, argument = str(path).partition(":")
    if not Path(file).is_file():
        raise MissingFileError(f"--config {file}: no such file")
    defined = runpy.run_path(file, run_name=f"config_{Path(file).stem}")
    if "get_config" not in defined:
        raise InputError(f"--config {file}: defines no get_config()")
    config = from_config_dict(defined["get_config"](*([argument] if argument else [])))
    parts = checked(load_parts(file), config)
    config = dataclasses.replace(
        config, rollout=dataclasses.replace(config.rollout, group_size=size),
        rl=dataclasses.replace(config.rl, tis_cap=0.0, kl_coef=0.0),
    )
    table = load_table(Path(config.reward.calibration)) if config.reward.calibration else None
    return Path(file).stem, Candidate(config, "own", parts, table)
