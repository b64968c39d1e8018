"""Everything an episode needs that does not change during a run: domain, tasks, users, chat."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tarl_jax.config import ConfigError, InputError, RunConfig
from tarl_jax.config.plain import dumps
from tarl_jax.config.rollout import carries
from tarl_jax.models.tensor_files import fingerprint
from tarl_jax.parallel.mesh import check_fits, rollout_mesh
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.episode import Episode, Supervisor
from tarl_jax.rollout.grammar import build
from tarl_jax.rollout.journal import Journal, KeptEpisode
from tarl_jax.rollout.maths_episode import Maths, MathsEpisode
from tarl_jax.rollout.outside import OutsideEngine
from tarl_jax.sandbox import telecom_phrases
from tarl_jax.sandbox.desks import desk_of
from tarl_jax.sandbox.dialogue import User, UserOf
from tarl_jax.sandbox.domain import Domain, Refusal, Rules
from tarl_jax.sandbox.llm_user import LLMUsers
from tarl_jax.sandbox.published import (
    DOMAINS,
    embedded_domain,
    load_benchmark_tasks,
    load_domain,
)
from tarl_jax.sandbox.starts import start_of
from tarl_jax.sandbox.tasks import dataset_tasks, load_tasks, make_tasks
from tarl_jax.sandbox.users import playable, scripted_user
from tarl_jax.speech.service import Speech
from tarl_jax.speech.user import SpokenUser
from tarl_jax.text.chat import Chat
from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer
from tarl_jax.text.tokenizer import Tokenizer, embedded_model
from tarl_jax.types import Task

AnyEngine = Engine | OutsideEngine


@dataclasses.dataclass(frozen=True)
class Environment:
    """A domain behind a chat, its tasks, and who plays their users.

    system: the system turn's text and tokens.
    maths: the problems of the mix; None in a run without.
    users: the language model that plays them; None: scripts do, or `own_user`.
    speech: what they speak with; None: all of them write.
    own_user: makes the user of an episode, in place of both.
    scripts: by task, what scripted users would follow; of tasks that language models play, which
      themselves hold none.
    """

    config: RunConfig
    domain: Domain
    tokenizer: Tokenizer | PretrainedTokenizer
    chat: Chat
    train_tasks: list[Task]
    held_out_tasks: list[Task]
    system: tuple[str, list[int]]
    maths: Maths | None = None
    users: LLMUsers | None = None
    speech: Speech | None = None
    own_user: UserOf | None = None
    scripts: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; at least as many as the tokenizer has ids."""
        return self.config.model.vocab_size or self.tokenizer.vocab_size

    @classmethod
    def from_config(
        cls, config: RunConfig, domain: Domain | None = None, tasks: Sequence[Task] | None = None,
        own_user: UserOf | None = None,
    ) -> Environment:
        """The environment that a config describes.

        Args:
          domain, tasks, own_user: in place of those that the config names.
        Raises: InputError for a broken task file, tasks without one of the splits, or that do not
          suit the user; and what `Speech.from_config` raises.
        """
        found = _domain(config) if domain is None else domain
        known = tasks or _tasks(config, found, domain is not None)
        train, held_out = _split(config, found, known, own_user is not None)
        if not train:
            raise _lacks(config, "train")
        folder = config.model.pretrained
        audio = bool(config.model.audio)
        tokenizer = (
            PretrainedTokenizer(folder, audio) if folder
            else Tokenizer(embedded_model(found.name), with_audio=audio)
        )
        chat = Chat(tokenizer, config.rollout.several_calls, config.rollout.thinking == "on")
        if 0 < config.model.vocab_size < tokenizer.vocab_size:
            raise InputError(
                f"config.model.vocab_size = {config.model.vocab_size}: the tokenizer has"
                f" {tokenizer.vocab_size} ids; use at least as many, or 0"
            )
        system = _system(config, found, chat, domain is not None)
        maths = Maths.from_config(config, chat)
        users = LLMUsers(config.user) if config.user.kind == "llm" else None
        wanted = config.speech.share or config.curriculum.spoken or config.eval.spoken
        speech = Speech.from_config(config.speech) if wanted else None
        return cls(config, found, tokenizer, chat, train, held_out, system, maths, users, speech,
                   own_user, _scripts(known))

    def evaluation(self) -> Environment:
        """Where evaluations play: here, or as `eval.domain` and `eval.data` say."""
        config, wanted = self.config, self.config.eval
        if not (wanted.domain or wanted.data):
            return self
        sandbox = dataclasses.replace(
            config.sandbox, domain=wanted.domain or config.sandbox.domain,
            data=wanted.data or config.sandbox.data, rules="" if wanted.data else
            config.sandbox.rules,
        )
        tasks = dataclasses.replace(config.tasks, file="", tfds=())
        config = dataclasses.replace(config, sandbox=sandbox, tasks=tasks)
        domain = _domain(config, "eval" if wanted.domain else "sandbox")
        known = _tasks(config, domain, False, ("held_out",))
        _, held_out = _split(config, domain, known, self.own_user is not None)
        return dataclasses.replace(
            self, config=config, domain=domain, train_tasks=[], held_out_tasks=held_out,
            system=_system(config, domain, self.chat, False), scripts=_scripts(known),
        )

    def episode(
        self, task: Task, *stream: str | int, supervisor: Supervisor | None = None,
        journal: Journal | None = None,
    ) -> Episode | MathsEpisode | KeptEpisode:
        """A fresh episode; its seed is a hash of the run's seed, the task and `stream`.

        The last of `stream` tells the episodes of one group apart. Where the policy has an audio
        encoder, what users say to the same words, who speaks, and in which voice, does not hang on
        it: a group hears its opening from one clip, and is compared with itself on the same users.

        journal: keeps it while it is played, where its user is asked outside this process, or where
          it may be carried over to a later step.
        """
        seed = self._seed(task, *stream)
        if self.maths is not None and task.kind == "maths":
            return self.maths.episode(task, seed)
        user: User | None = None
        if self.own_user:
            user = self.own_user(task, seed)
        elif self.users:
            tools = [tool.schema for tool in self.domain.tools_of("user").values()]
            user = self.users.user(task, seed, tools, journal)
        if self.config.model.audio:
            group = self._seed(task, "voice", *stream[:-1])
            user = user or scripted_user(self.domain, task, group)
            if self.speech and self.config.speech.share:
                user = SpokenUser(user, self.speech, self.config.speech, group)
        episode = Episode(task, seed, self.domain, self.chat, self.config.rollout, self.system,
                          user, supervisor, self.config.user.stop_waits)
        timed = carries(self.config.rollout)
        kept = episode.outside or timed
        return journal.kept(episode, timed) if journal and kept else episode

    def engine(self) -> AnyEngine:
        """The rollout engine of this environment's policy, on all devices, or one outside."""
        config, grammar = self.config, None
        if config.rollout.outside.base_url:
            return OutsideEngine(
                config.model, config.rollout, self.tokenizer.stop_ids, self.vocab_size
            )
        if config.rollout.constrain_calls:
            grammar = build(self.tokenizer, self.domain.tools, self.vocab_size, self.chat.begin)
        mesh = rollout_mesh(config.mesh)
        check_fits(mesh, config.model, self.vocab_size, "rollout_tensor")
        # Maths problems have no system turn of the shop, but run in one batch with its dialogues.
        least = min(len(env.system[1]) for env in (self, self.evaluation()))
        return Engine(config.model, config.rollout, self.tokenizer.stop_ids, mesh, grammar,
                      least=least, ids=self.tokenizer.vocab_size)

    def speaking(
        self, share: float, acoustics: tuple[str, ...] | None = None,
        voices: tuple[str, ...] | None = None, clean: float | None = None,
    ) -> Environment:
        """This environment, in which users speak so much (`speech.share`), in these acoustics.

        acoustics, voices, clean: None: as they are. Raises InputError for a share where nobody can
        speak.
        """
        if share and self.speech is None:
            raise InputError(f"share = {share}: nobody can speak here: set config.speech.share")
        old = self.config.speech
        speech = dataclasses.replace(
            old, share=share, acoustics=old.acoustics if acoustics is None else acoustics,
            clean=old.clean if clean is None else clean,
        )
        if voices is not None:
            speech = dataclasses.replace(speech, voices=voices, held_out=())
        return dataclasses.replace(self, config=dataclasses.replace(self.config, speech=speech))

    def contents(self) -> dict[str, str]:
        """Hashes of what the config only names, for `runs.directory.require_contents`."""
        model = self.config.model
        frozen = bool(model.lora.rank or (model.audio and model.audio.frozen))

        def of(*parts: str) -> str:
            return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

        maths = {} if self.maths is None else {
            "maths problems": of(*(dumps(t.to_json()) for t in self.maths.train_tasks))
        }
        weights = {"frozen weights": fingerprint(model.pretrained)} if (
            model.pretrained and frozen) else {}
        return {
            "training tasks": of(*(dumps(t.to_json()) for t in self.train_tasks)),
            "held-out tasks": of(*(dumps(t.to_json()) for t in self.held_out_tasks)),
            "database and policy": of(
                self.domain.state_hash(self.domain.new_state()), self.domain.policy
            ),
            "tokenizer": self.tokenizer.digest,
            **maths, **weights,
        }

    def _seed(self, task: Task, *stream: str | int) -> int:
        name = "/".join(map(str, (self.config.seed, task.task_id, *stream)))
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])

    def check_users(self) -> None:
        """Raises LLMError where users that are language models cannot be asked."""
        if self.users:
            self.users.check()

    def user_counts(self) -> dict[str, float]:
        """What language models were asked since the last time, as metrics named "user/…"."""
        counts = self.users.counts() if self.users else {}
        return {f"user/{name}": count for name, count in counts.items()}

    def close(self) -> None:
        """Ends what is asked of language models and synthesisers."""
        if self.users:
            self.users.close()
        if self.speech:
            self.speech.close()


def _domain(config: RunConfig, group: str = "sandbox") -> Domain:
    """group: of the config, that names it."""
    if config.sandbox.domain not in DOMAINS:
        raise ConfigError(
            f"config.{group}.domain = {config.sandbox.domain!r}: choose one of"
            f" {', '.join(DOMAINS)}, or give a domain of your own by get_parts() in the config"
            " file (docs/extending.md)"
        )
    if config.sandbox.data:
        rules = cast(Rules, config.sandbox.rules) or None
        own_words = config.sandbox.tool_schemas == "own"
        return load_domain(config.sandbox.domain, config.sandbox.data, rules, own_words)
    return embedded_domain(config.sandbox.domain, config.shop)


def shows_all(config: RunConfig) -> bool:
    """Whether the system turn holds the policy and the tools (`rollout.system_prompt`)."""
    wanted = config.rollout.system_prompt
    capable = bool(config.model.pretrained) or config.user.kind == "llm"
    return wanted == "full" or (wanted == "auto" and bool(config.sandbox.data) and capable)


def _system(config: RunConfig, domain: Domain, chat: Chat, own: bool) -> tuple[str, list[int]]:
    """The system turn's text and tokens; `own`: the domain is one of the user's parts."""
    if shows_all(config):
        return domain.prompt, chat.system(domain.prompt, domain.schemas)
    # Of an own domain nothing but its policy says what the agent is there.
    text = domain.policy
    if not own:
        text = telecom_phrases.SYSTEM if domain.user else desk_of(domain.name).phrases.system
    return text, chat.system(text)


def _tasks(
    config: RunConfig, domain: Domain, own: bool, splits: Sequence[str] = ("train", "held_out")
) -> Sequence[Task]:
    """Those of a file, of datasets, of a folder of data, or made for an embedded domain.

    splits: that are made; files and folders have what they have.
    """
    data, given = config.sandbox.data, _given(config)
    if given:
        tasks = (dataset_tasks(config.tasks.tfds) if config.tasks.tfds else
                 load_tasks(config.tasks.file))
        known = domain.database.get("users", {}).keys()
        strangers = {t.user_id for t in tasks if t.user_id} - known
        if strangers and known:
            raise InputError(
                f"{given}: is about users that this shop lacks, such as {min(strangers)!r}: use the"
                " config.shop or config.sandbox.data that the tasks were made for"
            )
        for task in tasks:
            _require_calls(given, task, domain)
        return tasks
    if data:
        return load_benchmark_tasks(domain.name, data, domain, config.eval.split)
    if own:
        raise ConfigError(
            f"Parts(domain=…): the domain {domain.name!r} has no tasks: give Parts(tasks=…),"
            " config.tasks.file, config.tasks.tfds or config.sandbox.data"
        )
    return [task for split in splits
            for task in make_tasks(domain, config.shop, config.tasks, split)]


def _given(config: RunConfig) -> str:
    """The task file, or the datasets, that the config names; empty: neither."""
    return config.tasks.file or ", ".join(config.tasks.tfds)


def _require_calls(path: str, task: Task, domain: Domain) -> None:
    """Raises InputError where the domain has not the tools, or the records, of the gold calls."""
    state = domain.new_state()
    for call in task.gold_calls:
        tool = domain.tools.get(call.name)
        if tool is None:
            raise InputError(f"{path}: task {task.task_id!r}: the domain {domain.name!r} has no"
                             f" tool {call.name!r}; mend its gold_calls, or choose another domain")
        problem = tool.problem(dict(call.kwargs))
        answer = problem or domain.call(state, call.name, call.kwargs)
        if problem or (isinstance(answer, Refusal) and "not found" in answer):
            raise InputError(f"{path}: task {task.task_id!r}: its gold call {call.name} is refused:"
                             f" {answer}; mend its gold_calls, or use the data it was made for")


def _split(
    config: RunConfig, domain: Domain, tasks: Sequence[Task], own_user: bool
) -> tuple[list[Task], list[Task]]:
    """Those to train on, and those held out; each can be started, and played by the run's user.

    Starts are made once here: what an episode finds then hangs on no other episode (of telecom's
    VPNs it would).
    """
    where = _given(config) or config.sandbox.data or "the tasks"
    train = [t for t in tasks if t.split == "train"]
    held_out = [t for t in tasks if t.split == "held_out"]
    if not held_out:
        raise _lacks(config, "held_out")
    for task in (*train, *held_out):
        start_of(domain, task.initial_state, task.task_id)
    if own_user:
        return train, held_out
    if config.user.kind == "llm":
        return _unscripted(train), _unscripted(held_out)
    without = next((t.task_id for t in (*train, *held_out) if not playable(domain, t)), None)
    if without is not None:
        raise InputError(
            f"task {without!r} of {where} has no script that a user could follow: let a language"
            " model play it, --config.user.kind=llm, or give Parts(user=…); or make tasks with"
            " scripts on the same data (python -m tarl_jax.sandbox.synthesis, retail alone)"
        )
    return train, held_out


def _lacks(config: RunConfig, split: str) -> InputError:
    where = _given(config) or config.sandbox.data or "the tasks"
    return InputError(f"{where}: none has the split {split!r}; a run needs tasks to train on and"
                      " tasks that are held out")


def _scripts(tasks: Sequence[Task]) -> dict[str, Mapping[str, Any]]:
    return {task.task_id: task.script for task in tasks if task.script}


def _unscripted(tasks: list[Task]) -> list[Task]:
    # A language model follows the instruction, not the script: nothing may be judged by that.
    return [dataclasses.replace(task, script=None) for task in tasks]
