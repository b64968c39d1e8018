"""From a run, or a config with a checkpoint, to what answers requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from tarl_jax.config import ConfigError, RolloutConfig, RunConfig
from tarl_jax.models.decoder import Params
from tarl_jax.parallel import hosts
from tarl_jax.parallel.mesh import rollout_mesh
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.environment import Environment, shows_all
from tarl_jax.rollout.grammar import anything
from tarl_jax.rollout.sampling import Sampling
from tarl_jax.rollout.session import Session
from tarl_jax.runs.checkpoint import Checkpoints
from tarl_jax.runs.directory import require_run
from tarl_jax.serve.answers import Answers
from tarl_jax.serve.rendering import Renderer
from tarl_jax.serve.turns import Limits, Writer
from tarl_jax.training.parts import Parts, record
from tarl_jax.training.policy import make_updater, newest, restore, starting_policy


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """How a policy is served.

    slots: answers that are written at once; context: tokens of a conversation, 0: the run's
    `max_episode_tokens`; turn: tokens of an answer, 0: its `max_turn_tokens`; burst: tokens that
    are written before who came meanwhile is let in; parked: contexts that keep their cache without
    a slot; idle_seconds: after which one that nobody goes on with is forgotten; lazy: programs are
    compiled when they are first needed; constrain: calls are written by a grammar; own_system: all
    conversations begin with the run's own system turn, whatever their clients' system messages say.
    """

    slots: int = 8
    context: int = 0
    turn: int = 0
    burst: int = 8
    parked: int = 16
    idle_seconds: float = 600.0
    lazy: bool = False
    constrain: bool = True
    own_system: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for name, least in (("slots", 1), ("context", 0), ("turn", 0), ("burst", 1), ("parked", 0)):
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"--{name}={value}: must be at least {least}")
        if not 0 < self.idle_seconds < float("inf"):
            raise ConfigError(f"--idle_seconds={self.idle_seconds}: give a number above 0")

    def rollout(self, run: RolloutConfig) -> RolloutConfig:
        """What the engine is given in place of what the run had. Raises ConfigError."""
        found = dataclasses.replace(
            run, slots=self.slots, lanes=1, parked=self.parked,
            max_turn_tokens=self.turn or run.max_turn_tokens,
            max_episode_tokens=self.context or run.max_episode_tokens,
        )
        if found.max_turn_tokens >= found.max_episode_tokens:
            raise ConfigError(f"--turn={found.max_turn_tokens}: leaves no room for a prompt within"
                              f" --context={found.max_episode_tokens}")
        return found


@dataclasses.dataclass(frozen=True)
class HttpLimits:
    """body: bytes of a request; messages: of a conversation; requests: answered at a time."""

    body: int = 8 << 20
    messages: int = 2000
    requests: int = 512

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ConfigError(f"--max_{name}={value}: must be at least 1")


@dataclasses.dataclass
class Served:
    """name: of the policy; defaults: the sampling of requests that name none."""

    name: str
    env: Environment
    session: Session
    answers: Answers
    defaults: Sampling
    max_tokens: int


def load_policy(
    config: RunConfig, parts: Parts, step: int = -1
) -> tuple[str, Environment, Params]:
    """(a name, the environment, the stacked parameters) of a checkpoint of the run in
    `config.workdir` (step -1: the newest); without a workdir, of what the config starts from.

    Raises: ConfigError where there is no such run, CheckpointError no such checkpoint.
    """
    if hosts.several():
        raise ConfigError("config.mesh.processes: a policy is served by one process; give 1")
    env = Environment.from_config(config, parts.domain, parts.tasks, parts.user)
    updater = make_updater(config, env)
    if not config.workdir:
        return config.name, env, starting_policy(config, env, updater)
    run_dir = Path(config.workdir).expanduser()
    require_run(config, run_dir, record(parts))
    checkpoints = Checkpoints(run_dir, config.checkpoint)
    step = newest(checkpoints, run_dir, step)
    params = restore(config, env, updater, checkpoints, step).policy
    checkpoints.close()
    return f"{run_dir.name}@{step}", env, params


def serve_policy(
    name: str, env: Environment, params: Params, serve: ServeConfig,
    log: Callable[[str], None] = print,
) -> Served:
    """Starts the engine; the caller closes `Served.session`."""
    run = env.config.rollout
    rollout = serve.rollout(run)
    free = anything(env.vocab_size)
    engine = Engine(
        env.config.model, rollout, env.tokenizer.stop_ids, rollout_mesh(env.config.mesh), free,
        burst=min(serve.burst, rollout.max_turn_tokens),
    )
    held, moved = engine.programs.cache_bytes()
    log(f"caches of {serve.slots} answers and {serve.parked} further contexts take up to"
        f" {held / 2**20:,.0f} MiB, and {moved / 2**20:,.0f} MiB more while they are moved")
    session = Session(engine, params, free, serve.idle_seconds, serve.slots + serve.parked)
    if not serve.lazy:
        engine.programs.compile(
            params, shrinks=False,
            progress=lambda done, total, note="": log(f"compiling {done} of {total}  {note}")
            if note or not done else None,
        )
    text, _ = env.system
    renderer = Renderer(env.tokenizer, env.chat, text, shows_all(env.config), serve.own_system)
    limits = Limits(rollout.max_episode_tokens, rollout.max_turn_tokens, serve.constrain,
                    run.reasoning)
    writer = Writer(session, env.tokenizer, env.chat, renderer, limits)
    answers = Answers(writer, env.vocab_size)
    defaults = Sampling(env.config.eval.temperature, run.top_k, run.top_p, run.min_p)
    return Served(name, env, session, answers, defaults, rollout.max_episode_tokens)
