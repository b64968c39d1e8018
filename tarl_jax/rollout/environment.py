"""Everything an episode needs that does not change during a run: domain, tasks, users, chat."""

from __future__ import annotations

import dataclasses
import hashlib

from tarl_jax.config import RunConfig
from tarl_jax.parallel.mesh import rollout_mesh
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.episode import Episode, Supervisor
from tarl_jax.rollout.grammar import build
from tarl_jax.rollout.maths_episode import Maths, MathsEpisode
from tarl_jax.sandbox import phrases, shop
from tarl_jax.sandbox.dialogue import User
from tarl_jax.sandbox.domain import Domain
from tarl_jax.sandbox.llm_user import LLMUsers
from tarl_jax.sandbox.published import load_benchmark_tasks, load_domain
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.tasks import load_tasks, make_tasks
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.speech.service import Speech
from tarl_jax.speech.user import SpokenUser
from tarl_jax.text.chat import Chat
from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer
from tarl_jax.text.tokenizer import Tokenizer
from tarl_jax.types import Task


@dataclasses.dataclass(frozen=True)
class Environment:
    """A domain behind a chat, its tasks, and who plays their users.

    system: the system turn's text and tokens.
    maths: the problems of the mix; None in a run without.
    users: the language model that plays them; None: scripts do.
    speech: what they speak with; None: all of them write.
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

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; at least as many as the tokenizer has ids."""
        return self.config.model.vocab_size or self.tokenizer.vocab_size

    @classmethod
    def from_config(cls, config: RunConfig) -> Environment:
        """Raises ValueError for a broken task file, one without tasks of a split, or data that do
        not suit the user, and what `Speech.from_config` raises.
        """
        domain = _domain(config)
        train, held_out = _tasks(config, domain)
        folder = config.model.pretrained
        with_audio = bool(config.model.audio)
        tokenizer = PretrainedTokenizer(folder, with_audio) if folder else Tokenizer(with_audio=with_audio)
        chat = Chat(tokenizer)
        if 0 < config.model.vocab_size < tokenizer.vocab_size:
            raise ValueError(
                f"config.model.vocab_size = {config.model.vocab_size}: the tokenizer has"
                f" {tokenizer.vocab_size} ids; use at least as many, or 0"
            )
        text, schemas = phrases.SYSTEM, []
        if config.rollout.system_prompt == "full":
            text, schemas = domain.policy, [tool.schema for tool in domain.tools.values()]
        system = (text, chat.system(text, schemas))
        maths = Maths.from_config(config, chat)
        users = LLMUsers(config.user) if config.user.kind == "llm" else None
        wanted = config.speech.share or config.curriculum.spoken or config.eval.spoken
        speech = Speech.from_config(config.speech) if wanted else None
        return cls(config, domain, tokenizer, chat, train, held_out, system, maths, users, speech)

    def episode(
        self, task: Task, *stream: str | int, supervisor: Supervisor | None = None
    ) -> Episode | MathsEpisode:
        """A fresh episode; its seed is a hash of the run's seed, the task and `stream`.

        The last of `stream` tells the episodes of one group apart. Where the policy has an audio encoder, what
        users say to the same words, who speaks, and in which voice, does not hang on it: a group
        hears its opening from one clip, and is compared with itself on the same users.
        """
        seed = self._seed(task, *stream)
        if self.maths is not None and task.kind == "maths":
            return self.maths.episode(task, seed)
        user: User | None = self.users.user(task, seed) if self.users else None
        if self.config.model.audio:
            group = self._seed(task, "voice", *stream[:-1])
            user = user or ScriptedUser(task, group)
            if self.speech and self.config.speech.share:
                user = SpokenUser(user, self.speech, self.config.speech, group)
        return Episode(task, seed, self.domain, self.chat, self.config.rollout, self.system, user,
                       supervisor)

    def engine(self) -> Engine:
        """The rollout engine of this environment's policy, on all devices."""
        config, grammar = self.config, None
        if config.rollout.constrain_calls:
            grammar = build(self.tokenizer, self.domain.tools, self.vocab_size)
        mesh = rollout_mesh(config.mesh)
        # Maths problems have no system turn of the shop, but run in one batch with its dialogues.
        return Engine(config.model, config.rollout, self.tokenizer.stop_id, mesh, grammar,
                      least=len(self.system[1]))

    def speaking(self, share: float, acoustics: tuple[str, ...] | None = None) -> Environment:
        """This environment, in which users speak so much (`speech.share`), in these acoustics.

        acoustics: None: as they are. Raises ValueError for a share of a environment without speech.
        """
        if share and self.speech is None:
            raise ValueError(f"share = {share}: nobody can speak here: set config.speech.share")
        old = self.config.speech
        speech = dataclasses.replace(
            old, share=share, acoustics=old.acoustics if acoustics is None else acoustics
        )
        return dataclasses.replace(self, config=dataclasses.replace(self.config, speech=speech))

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


def _domain(config: RunConfig) -> Domain:
    if config.sandbox.data:
        return load_domain(config.sandbox.domain, config.sandbox.data)
    return retail_domain(shop.make_shop(config.shop), shop.POLICY.read_text("utf-8"))


def _tasks(config: RunConfig, domain: Domain) -> tuple[list[Task], list[Task]]:
    """Those to train on, and those held out."""
    path, data = config.tasks.file, config.sandbox.data
    if path:
        tasks = load_tasks(path)
        strangers = {t.user_id for t in tasks if t.user_id} - domain.database["users"].keys()
        if strangers:
            raise ValueError(
                f"{path}: is about users that this shop lacks, such as {min(strangers)!r}: use the"
                " config.shop or config.sandbox.data that the tasks were made for"
            )
    elif data:
        tasks = load_benchmark_tasks(config.sandbox.domain, data, domain)
    else:
        tasks = [task for split in ("train", "held_out")
                 for task in make_tasks(domain, config.shop, config.tasks, split)]
    train = [t for t in tasks if t.split == "train"]
    held_out = [t for t in tasks if t.split == "held_out"]
    if not train or not held_out:
        raise ValueError(
            f"{path or data}: {len(train)} tasks have the split 'train' and {len(held_out)}"
            " 'held_out'; a run needs both"
        )
    if config.user.kind == "llm":
        return _unscripted(train), _unscripted(held_out)
    without = next((t.task_id for t in tasks if t.script is None), None)
    if without is not None:
        raise ValueError(
            f"task {without!r} of {path or data} has no script that a user could follow: let a"
            " language model play it, --config.user.kind=llm"
        )
    return train, held_out


def _unscripted(tasks: list[Task]) -> list[Task]:
    # A language model follows the instruction, not the script: nothing may be judged by that.
    return [dataclasses.replace(task, script=None) for task in tasks]
