"""The config of a run as one frozen record of groups, each of which has a file of this room."""

from __future__ import annotations

import dataclasses

from tarl_jax.config.credit import RewardConfig, RLConfig
from tarl_jax.config.curriculum import CurriculumConfig
from tarl_jax.config.environment import SandboxConfig, ShopConfig, TaskConfig
from tarl_jax.config.evaluation import EvalConfig
from tarl_jax.config.judge import JudgeConfig
from tarl_jax.config.llm import UserConfig
from tarl_jax.config.log import CheckpointConfig, LogConfig
from tarl_jax.config.maths import MathsConfig
from tarl_jax.config.mesh import MeshConfig
from tarl_jax.config.model import ModelConfig
from tarl_jax.config.rollout import RolloutConfig
from tarl_jax.config.sft import SFTConfig
from tarl_jax.config.speech import SpeechConfig
from tarl_jax.config.warm_start import WarmStartConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Every knob of a run; each group is a file of this room (`tarl_jax/config/__init__.py`)."""

    name: str = "grpo_tarl"  # names the run's folder under runs/, where no workdir does
    seed: int = 0  # of tasks' order, users' phrasing and sampling
    workdir: str = ""  # empty: runs/<name>-<date and time>
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    sandbox: SandboxConfig = dataclasses.field(default_factory=SandboxConfig)
    shop: ShopConfig = dataclasses.field(default_factory=ShopConfig)
    user: UserConfig = dataclasses.field(default_factory=UserConfig)
    tasks: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    maths: MathsConfig = dataclasses.field(default_factory=MathsConfig)
    warm_start: WarmStartConfig = dataclasses.field(default_factory=WarmStartConfig)
    sft: SFTConfig = dataclasses.field(default_factory=SFTConfig)
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    rl: RLConfig = dataclasses.field(default_factory=RLConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    speech: SpeechConfig = dataclasses.field(default_factory=SpeechConfig)
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)
