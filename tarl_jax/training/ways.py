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
      reward, rl: fields of these groups of the config that differ from the defaults.
      needs: what it takes beside the verdict.
      table: whether it has a table of calibrated turns, which is made of the other half's tasks.
    """

    reward: Mapping[str, Any]
    rl: Mapping[str, Any]
    needs: str = "judge"
    table: bool = False


_TERMINAL = {"placement": "terminal"}
_STAGE = {"placement": "stage"}
_NONE, _SCALE = {"normalise": "none"}, {"normalise": "scale"}
WAYS = {
    BASELINE: Way(_TERMINAL, _NONE, "nothing"),
    "verdict, divided (GRPO)": Way(_TERMINAL, {}, "nothing"),
    "verdict, RLOO": Way(_TERMINAL, {"advantage": "rloo", **_NONE}, "nothing"),
    "verdict, GiGPO": Way({**_TERMINAL, "turn_weight": 1.0}, {"advantage": "gigpo"}, "gold calls"),
    "goals, by stage": Way({**_STAGE, "stage_judge": False}, _SCALE, "gold calls"),
    "TARL, divided": Way({}, {}),
    "TARL, undivided": Way({}, _NONE),
    "TARL, batch": Way({}, {"normalise": "batch"}),
    "TARL, turns taken": Way({"denominator": "taken"}, {}),
    "TARL, calibrated": Way({}, {}, "judge, table", True),
    "TARL, GiGPO": Way({"turn_weight": 1.0}, {"advantage": "gigpo"}, "judge, gold"),
    "TARL, GDPO": Way({}, {"advantage": "gdpo", "normalise": "batch"}),
    "TARL, MT-GRPO": Way({"turn_weight": 1.0}, {"advantage": "mt_grpo"}),
    "TARL, return to go": Way({}, {"advantage": "return_to_go", **_SCALE}),
    "TARL + turns": Way({"turn_weight": 0.5}, {}),
    "TARL + turns, scale": Way({"turn_weight": 0.5}, _SCALE),
    "TARL + turns, calibrated": Way({"turn_weight": 0.5}, {}, "judge, table", True),
    "stage credit": Way(_STAGE, _SCALE, "judge, gold"),
    "stage credit + TARL": Way({**_STAGE, "episode_weight": 1.0}, _SCALE, "judge, gold"),
    "PPO": Way({}, {"advantage": "gae", "normalise": "batch"}, "value model"),
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
