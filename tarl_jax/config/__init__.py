"""Every knob of a run. This page is the index: a group of the config, and the file of its fields.

    --config.KEY             file              what it decides
    name, seed, workdir      run.py            the run's name, its random streams, its folder
    mesh.*                   mesh.py           how the devices share the work
    model.*                  model.py          the policy: decoder, adapters, dtypes
    model.audio.*            audio.py          its audio encoder
    sandbox.*, shop.*        environment.py    the domain and its database
    tasks.*                  environment.py    what users want
    user.*, user.llm.*       llm.py            who plays the user
    maths.*                  maths.py          maths problems in the mix
    speech.*                 speech.py         users who speak: voices, acoustics
    curriculum.*             curriculum.py     the first steps' mix
    warm_start.*             warm_start.py     imitation before reinforcement learning
    sft.*                    sft.py            fine-tuning on dialogues before it
    rollout.*                rollout.py        episodes: lengths, sampling, slots
    rollout.outside.*        outside.py        an engine outside this process that plays them
    eval.*                   evaluation.py     evaluations
    judge.*                  judge.py          who scores the turns
    reward.*                 credit.py         how verdict and scores become reward
    rl.*                     credit.py         advantage, loss, optimiser, value model
    checkpoint.*, log.*      log.py            what is kept, and how often

`presets.py` has the sizes that every file of `configs/` takes as its argument.
"""

from tarl_jax.config.audio import AudioConfig as AudioConfig
from tarl_jax.config.build import from_config_dict as from_config_dict
from tarl_jax.config.build import to_config_dict as to_config_dict
from tarl_jax.config.credit import RewardConfig as RewardConfig
from tarl_jax.config.credit import RLConfig as RLConfig
from tarl_jax.config.credit import ValueConfig as ValueConfig
from tarl_jax.config.curriculum import CurriculumConfig as CurriculumConfig
from tarl_jax.config.environment import SandboxConfig as SandboxConfig
from tarl_jax.config.environment import ShopConfig as ShopConfig
from tarl_jax.config.environment import TaskConfig as TaskConfig
from tarl_jax.config.errors import ConfigError as ConfigError
from tarl_jax.config.errors import InputError as InputError
from tarl_jax.config.errors import MissingFileError as MissingFileError
from tarl_jax.config.errors import TarlError as TarlError
from tarl_jax.config.evaluation import EvalConfig as EvalConfig
from tarl_jax.config.judge import JudgeConfig as JudgeConfig
from tarl_jax.config.judge import NoiseConfig as NoiseConfig
from tarl_jax.config.llm import LLMConfig as LLMConfig
from tarl_jax.config.llm import UserConfig as UserConfig
from tarl_jax.config.log import CheckpointConfig as CheckpointConfig
from tarl_jax.config.log import LogConfig as LogConfig
from tarl_jax.config.maths import MathsConfig as MathsConfig
from tarl_jax.config.mesh import MeshConfig as MeshConfig
from tarl_jax.config.model import LoraConfig as LoraConfig
from tarl_jax.config.model import ModelConfig as ModelConfig
from tarl_jax.config.outside import OutsideConfig as OutsideConfig
from tarl_jax.config.rollout import RolloutConfig as RolloutConfig
from tarl_jax.config.run import RunConfig as RunConfig
from tarl_jax.config.sft import SFTConfig as SFTConfig
from tarl_jax.config.speech import SpeechConfig as SpeechConfig
from tarl_jax.config.warm_start import ClerkConfig as ClerkConfig
from tarl_jax.config.warm_start import WarmStartConfig as WarmStartConfig
