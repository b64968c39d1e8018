"""The knobs of the warm start; `tarl_jax.config` joins them to the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class ClerkConfig:
    """How often the scripted clerk errs, per request at which the error is possible.

    retry: how often it makes good a write that a tool rejects for such an error: it tries once
      more, with the right arguments, and otherwise refuses the request.
    """

    skip_confirmation: float = 0.2  # writes without asking for a yes
    wrong_variant: float = 0.06  # orders another variant than was asked for
    wrong_item: float = 0.05  # takes another item of the order
    wrong_reason: float = 0.06  # gives another reason
    wrongful_denial: float = 0.04  # refuses what the policy allows
    ignore_rule: float = 0.2  # does what the policy forbids
    false_done: float = 0.02  # says it is done, and has not done it
    transfer: float = 0.01  # transfers to a human where it need not
    redundant_read: float = 0.02  # looks up what it knows
    retry: float = 0.7


@dataclasses.dataclass(frozen=True)
class SpeechStageConfig:
    """How a warm start learns speech, once the policy reads; only where there is an audio encoder.

    episodes: demonstrations whose users speak, in the voices of config.speech. 0: none, the audio
      encoder stays random.
    spaced: written ones whose users' tokens stand as far apart as if they were spoken; from these,
      in `value_steps` and `joint_steps`, a policy learns to read what is not closely set.
    value_steps: of transcription (`transcription.py`) of numbers, names and the like said alone,
      without which they are hardly ever learned, beside imitation in writing: the table of tokens,
      which the loss shares with the decoder, learns too, and the policy goes on reading.
    steps: of transcription of these and whole turns, by the audio encoder alone, which begins
      anew.
    clean_steps: so many of these, the first, hear neither acoustics nor masks.
    encoder: name of a policy that the package keeps, such as five_voices: spelling and `steps`
      begin at its audio encoder, which needs fewer of them, and no `clean_steps`; "": at an
      untaught one.
    batch_seconds: of sound in a step of either.
    learning_rate: of `steps`, for Muon on the audio encoder's matrices.
    adam_learning_rate: of Adam on the rest, and in `value_steps` on all of the audio encoder and
      on the table of tokens.
    joint_steps: of imitation of spoken demonstrations, and as many spaced and written ones,
      `batch_tokens` each, beside transcription; all parameters learn, with half of Adam's rate.
    joint_rate: Muon's on the decoder, in `value_steps` and `joint_steps`, over the warm start's.
    frequency_masks, time_masks: SpecAugment in what is transcribed, after `clean_steps`: so many
      bands of mel bins, and stretches of time, of each clip are masked.
    frequency_mask_bins, time_mask_frames: the widest band, in mel bins, and the longest stretch, in
      frames of 10 ms.
    """

    episodes: int = 0
    spaced: int = 3000
    value_steps: int = 500
    steps: int = 2000
    clean_steps: int = 500
    encoder: str = ""
    batch_seconds: float = 40.0
    learning_rate: float = 0.02
    adam_learning_rate: float = 2e-3
    joint_steps: int = 600
    batch_tokens: int = 3072  # in the joint steps
    joint_rate: float = 0.3
    frequency_masks: int = 0
    frequency_mask_bins: int = 6
    time_masks: int = 0
    time_mask_frames: int = 12

    @property
    def masks(self) -> bool:
        """Whether anything is masked."""
        return bool(self.frequency_masks or self.time_masks)


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """Imitation of the erring clerk. `steps=0` starts from random parameters.

    It plays on the embedded data, whatever the run trains on, so its result depends on nothing but
    these fields, the model and the tokenizer: runs of many kinds begin at one policy.
    Some are kept in the package, the embedded default's for one; `warm_start/default.json` says how
    that one was made.

    make: makes it anew even where the package or the cache has it.
    seed: 3 is the one of five that training takes furthest (experiments/credit).
    num_users, orders_per_user: of the shops that it plays in, as in `shop`.
    requests, forbidden, change_mind: of the tasks that the clerk serves, as in `tasks`.
    max_turns, max_tokens: of a dialogue; those with more tokens are left out.
    score_tasks, score_trials: of the training pass rate that `target_pass` is compared with.
    error_factor: of the clerk's errors, where `target_pass` asks for more of them.
    target_pass: where the policy then passes more than this share of `score_tasks` tasks (of
      `score_trials` episodes each), it imitates a clerk that errs `error_factor` times as often,
      confirmations apart, until it does not; 0: that is left out.
    """

    make: bool = False
    seed: int = 3  # of parameters, tasks and phrasing
    episodes: int = 12_000  # demonstrations of the clerk
    branches: int = 40  # shops with other users and orders that the episodes are spread over
    steps: int = 1200  # of imitation; 0: none
    batch_tokens: int = 2048  # padded tokens per step
    learning_rate: float = 0.01  # of Muon on the matrices
    adam_learning_rate: float = 3e-3  # of AdamW on embeddings, norms
    num_users: int = 200
    orders_per_user: int = 4
    requests: tuple[float, ...] = (0.66, 0.24, 0.07, 0.03)
    forbidden: float = 0.2
    change_mind: float = 0.2
    max_turns: int = 30
    max_tokens: int = 768
    target_pass: float = 0.44
    score_tasks: int = 64
    score_trials: int = 4
    error_factor: float = 4.0
    observation_weight: float = 0.5  # weight of the forced tokens in the loss
    cache_dir: str = "~/.cache/tarl_jax"  # keeps warm starts and compiled programs, for all runs
    clerk: ClerkConfig = ClerkConfig()
    speech_stage: SpeechStageConfig = dataclasses.field(default_factory=SpeechStageConfig)


def check_warm_start(
    c: WarmStartConfig, require: Callable[[bool, str, Any, str], None]
) -> None:
    """Calls `require` of `config.checks` for all conditions."""
    where = "warm_start."
    require(bool(c.requests) and abs(sum(c.requests) - 1) < 1e-6 and min(c.requests) >= 0,
            f"{where}requests", c.requests, "probabilities must sum to 1")
    for name in ("seed", "steps"):
        value = getattr(c, name)
        require(value >= 0, where + name, value, "must be at least 0")
    for name in ("learning_rate", "adam_learning_rate"):
        value = getattr(c, name)
        require(value > 0, where + name, value, "must be above 0")
    require(c.observation_weight >= 0, f"{where}observation_weight", c.observation_weight,
            "must be at least 0")
    for name in ("num_users", "orders_per_user", "max_turns", "max_tokens",
                 "score_tasks", "score_trials", "episodes", "batch_tokens"):
        value = getattr(c, name)
        require(value > 0, where + name, value, "must be at least 1")
    require(c.branches > 0, f"{where}branches", c.branches, "must be at least 1")
    require(c.error_factor >= 1, f"{where}error_factor", c.error_factor, "must be at least 1")
    rates = {f"clerk.{name}": rate for name, rate in dataclasses.asdict(c.clerk).items()}
    shares = {"target_pass": c.target_pass, "forbidden": c.forbidden,
              "change_mind": c.change_mind, **rates}
    for name, value in shares.items():
        require(0 <= value <= 1, where + name, value, "must be between 0 and 1")
    for name in ("episodes", "spaced", "value_steps", "steps", "clean_steps", "joint_steps",
                 "frequency_masks", "frequency_mask_bins", "time_masks", "time_mask_frames"):
        value = getattr(c.speech_stage, name)
        require(value >= 0, f"{where}speech_stage.{name}", value, "must be at least 0")
    for name in ("batch_seconds", "learning_rate", "adam_learning_rate", "joint_rate",
                 "batch_tokens"):
        value = getattr(c.speech_stage, name)
        require(value > 0, f"{where}speech_stage.{name}", value, "must be above 0")
