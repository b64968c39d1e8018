"""Everything an episode needs that does not change during a run: shop, tasks, chat."""

from __future__ import annotations

import dataclasses
import hashlib

from tarl_jax.config import RunConfig
from tarl_jax.rollout.episode import Episode
from tarl_jax.sandbox import phrases, shop
from tarl_jax.sandbox.domain import Domain
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.tasks import load_tasks, make_tasks
from tarl_jax.text.chat import Chat
from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer
from tarl_jax.text.tokenizer import Tokenizer
from tarl_jax.types import Task


@dataclasses.dataclass(frozen=True)
class World:
    """The embedded shop behind a chat.

    system: the system turn's text and tokens.
    """

    config: RunConfig
    domain: Domain
    tokenizer: Tokenizer | PretrainedTokenizer
    chat: Chat
    train_tasks: list[Task]
    held_out_tasks: list[Task]
    system: tuple[str, list[int]]

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; at least as many as the tokenizer has ids."""
        return self.config.model.vocab_size or self.tokenizer.vocab_size

    @classmethod
    def from_config(cls, config: RunConfig) -> World:
        """Raises ValueError for a broken task file, or one without tasks of a split."""
        domain = retail_domain(shop.make_shop(config.shop), shop.POLICY.read_text("utf-8"))
        if config.tasks.file:
            tasks = load_tasks(config.tasks.file)
            strangers = {t.user_id for t in tasks} - domain.database["users"].keys()
            if strangers:
                raise ValueError(
                    f"{config.tasks.file}: is about users that this shop lacks, such as"
                    f" {min(strangers)!r}: use the config.shop that the tasks were made for"
                )
            train = [t for t in tasks if t.split == "train"]
            held_out = [t for t in tasks if t.split == "held_out"]
            if not train or not held_out:
                raise ValueError(
                    f"{config.tasks.file}: {len(train)} tasks have the split 'train' and"
                    f" {len(held_out)} 'held_out'; a run needs both"
                )
        else:
            train = make_tasks(domain, config.shop, config.tasks, "train")
            held_out = make_tasks(domain, config.shop, config.tasks, "held_out")
        folder = config.model.pretrained
        tokenizer = PretrainedTokenizer(folder) if folder else Tokenizer()
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
        return cls(config, domain, tokenizer, chat, train, held_out, system)

    def episode(self, task: Task, *stream: str | int) -> Episode:
        """A fresh episode; its seed is a hash of the run's seed, the task and `stream`."""
        name = "/".join(map(str, (self.config.seed, task.task_id, *stream)))
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
        return Episode(task, seed, self.domain, self.chat, self.config.rollout, self.system)
