"""Episodes and how they are sampled."""

from __future__ import annotations

import dataclasses

from tarl_jax.config.outside import OutsideConfig


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Episodes and how they are sampled.

    top_k, top_p, min_p: which tokens may be drawn (`rollout/sampling.py`); by default all. These
      and `temperature`: -1: as the pretrained checkpoint's generation_config.json has it. Training
      draws from the whole distribution unless told otherwise, for that is what its loss is of.
    lanes: parts of the slots that play beside each other on a CPU, each in a thread; 0: two where
      there are 32 slots or more and caches weigh more than the model, else one.
    in_flight: episodes under way at once, where users are slow; 0: four times the slots.
    parked: caches of waiting episodes that are kept while others use their slots; the caches of
      further ones are dropped and made again when the answer has come.
    share_prefix: the shortest prompt prefix, in tokens, that is copied between episodes instead of
      computed again; 0: never.
    constrain_calls: only what can still become a call of a known tool is drawn inside a call.
    loss_log_probs: those that the loss takes as the old ones: "whole", of the policy at the
      temperature, or "drawn", of the distribution that was drawn from, if anything cuts that off.
    thinking: "on" or "off": whether the agent's turns begin with the empty thought by which the
      template of Qwen3's hybrid models says that they are not to think.
    reasoning: "kept": what a turn says in `<think>` stays in the context; "template": it leaves it
      as Qwen3's template has it, once the user has answered, and an empty thought with its turn;
      "dropped": all of it leaves when the turn is over. What was written before the context changed
      is trained on in the context in which it was written.
    several_calls: what becomes of a turn with more calls than one: "refused", only the "first" is
      made, or "all" are, in order.
    episode_seconds: after which an episode is cut off at its next turn; 0: never.
    step_seconds: after which a training step goes on without the episodes that have not ended,
      as soon as it has a group to learn from; they are played on in the next step, under its policy
      ("carry"), or cut off ("cut"), as `unfinished` says. The groups of carried ones are held back
      with them, and what would come later than `rl.max_staleness` allows is cut off. 0: never.
    interruptions: how often, at most, the judge interrupts a training episode after a turn that it
      gives -1, and asks for it to be put right. For ablations: the method's authors found it
      harmful.
    after_transfer: what a transfer to a human does to the episode: "end" or "go on", until the user
      ends it; "rules": goes on where the task is tau2-bench's own, as there, else ends.
    max_errors: refused calls after which an episode fails; 0: any number; -1: by the same rules 10,
      or any number.
    max_messages: of agent, user and tools, after which an episode is cut off; 0: any number; -1: by
      the same rules 200, or any number. `max_turns` holds beside it.
    max_too_long: share of training tasks that may have no room: their shortest faultless dialogue,
      without thoughts, does not fit max_episode_tokens or max_turns; a run with more is refused.
    as_served: episodes are played as by a client of `tarl_jax.serve`: a turn that cannot be read is
      written again and costs no message, turn or error, and after three a short text stands for
      it; where no turn has room, the agent says goodbye until the user ends it.
    max_turns: of the agent, after which an episode fails; 0: any number; -1: by the same rules any
      number, or 30.
    greeting: whether a greeting of the agent's comes before the user's first message, "on" or
      "off"; "rules": by the same rules it does, or does not.
    system_prompt: what the agent is told: "brief", one line; "full", the policy and the schemas of
      the tools, as the benchmark puts them; "auto": full on a folder's data, but for a policy of no
      pretrained checkpoint that serves scripted users; else brief.
    cache: how keys and values lie: "contiguous", a stretch of the same length for every row, faster
      on a CPU; "pages", each dialogue in as many as it fills, few programs, for long dialogues;
      "auto": contiguous on CPUs alone.
    cache_tokens: room of all pages together, in tokens; 0: of half the slots' longest dialogues.
    page: tokens of a page.
    feed_tokens: with pages: forced tokens that one step feeds in each part of the batch, beside
      rows that write.
    journal: episodes whose users are asked outside (language models, servers of speech, own users)
      are kept turn by turn while they are played, and after a kill or a stop go on there, without
      asking anybody twice (`rollout/journal.py`).
    refills: how often, at most, a step's groups whose episodes all earned the same are replaced by
      groups of further tasks; 0: never.
    quantise: what is in int8 for playing, half of bfloat16's bytes: "int8": weights; "int8_cache":
      keys and values; "int8_both"; empty: nothing, they are in the model's dtype.
    outside: an engine outside this process that plays in this one's place.
    """

    tasks_per_step: int = 16  # groups of a training step
    group_size: int = 8  # episodes of each task
    temperature: float = 1.0  # of training episodes
    max_turns: int = -1
    max_turn_tokens: int = 48  # of one turn; a longer one is cut off
    max_episode_tokens: int = 768  # of all turns, prompt included
    brief_writes: bool = True  # the policy sees only the new status after a successful write
    system_prompt: str = "auto"
    slots: int = 128  # episodes on the device at once
    lanes: int = 0
    straggler_fraction: float = 0.5  # decode returns to the host when fewer rows still write
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    in_flight: int = 0
    parked: int = 0
    share_prefix: int = 64
    constrain_calls: bool = False
    loss_log_probs: str = "whole"
    thinking: str = "on"
    reasoning: str = "kept"
    several_calls: str = "refused"
    episode_seconds: float = 0.0
    step_seconds: float = 0.0
    unfinished: str = "carry"  # what becomes of episodes that a step does not wait for
    interruptions: int = 0
    after_transfer: str = "rules"
    max_errors: int = -1
    max_messages: int = -1
    max_too_long: float = 0.2
    greeting: str = "rules"
    as_served: bool = False
    cache: str = "auto"
    cache_tokens: int = 0
    page: int = 64
    feed_tokens: int = 2048
    refills: int = 0
    journal: bool = True
    quantise: str = ""
    outside: OutsideConfig = dataclasses.field(default_factory=OutsideConfig)


def int8_weights(config: RolloutConfig) -> bool:
    """Whether weights are in int8 for playing."""
    return config.quantise in ("int8", "int8_both")


def int8_cache(config: RolloutConfig) -> bool:
    """Whether keys and values are."""
    return config.quantise in ("int8_cache", "int8_both")


def carries(config: RolloutConfig) -> bool:
    """Whether episodes that a step has no time for are played on in the next one."""
    return bool(config.step_seconds) and config.unfinished == "carry"
