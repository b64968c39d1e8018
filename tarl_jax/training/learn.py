"""From rewarded episodes to new parameters: credit for each token, then optimiser updates."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tarl_jax.config import RunConfig
from tarl_jax.models.audio_inputs import audio_inputs_of
from tarl_jax.models.decoder import Params
from tarl_jax.parallel import hosts
from tarl_jax.rl.batching import (
    Layout,
    Sample,
    batch_shapes,
    fill,
    fullest,
    packed_layouts,
    packed_shapes,
    padded_layouts,
    samples_of,
    take_out,
)
from tarl_jax.rl.calibration import load_table
from tarl_jax.rl.objective import has_shares, in_loss, needs_score
from tarl_jax.rl.update import TrainState, Updater
from tarl_jax.speech.sound import AudioInputs
from tarl_jax.training.credit import Baselines, Credit, Table, assign, gap_name
from tarl_jax.training.parts import AdvantageOf
from tarl_jax.types import Batch, Trajectory


@dataclasses.dataclass(frozen=True)
class Learner:
    """What turns the episodes of a step into an update; nothing of it changes during a run.

    Attributes:
      row_shards: into how many parts the mesh splits the rows of a batch.
      table: of calibrated turns; None: the judge's scores count as they are.
      advantage: in place of the one that `config.rl.advantage` names.
    """

    config: RunConfig
    updater: Updater
    row_shards: int
    table: Table | None = None
    advantage: AdvantageOf | None = None

    def shapes(self) -> list[tuple[int, int]]:
        """Every (rows, length) of a batch."""
        longest = self.config.rollout.max_episode_tokens
        tokens = self.config.rl.micro_batch_tokens
        if self.config.rl.pack:
            return packed_shapes(longest, tokens, self.row_shards)
        return batch_shapes(longest, tokens, self.row_shards)

    def credit(
        self, state: TrainState, reference: Params | None, trajectories: Sequence[Trajectory],
        baselines: Baselines,
    ) -> Credit:
        """What each token of rewarded episodes trains on.

        Where the advantages need it, the models are asked first what they say of the tokens.
        """
        encoder = self.config.model.audio
        audio = [
            audio_inputs_of(t.sounds(), t.num_tokens, encoder) if encoder else None
            for t in trajectories
        ]
        scores = {}
        if needs_score(self.config.rl):
            scores = self._scores(state, reference, trajectories, audio)
        credit = assign(trajectories, self.config, scores, self.table, baselines, self.advantage)
        return dataclasses.replace(credit, audio=audio)

    def update(
        self, step: int, state: TrainState, reference: Params | None,
        trajectories: Sequence[Trajectory], credit: Credit,
    ) -> tuple[TrainState, dict[str, float]]:
        """The state after this step, and metrics named "rl/…". Raises NonFiniteError.

        One optimiser step per minibatch of groups and epoch. What has nothing to teach is left out,
        but not of a loss that holds every sampled token to a reference or an entropy.
        """
        rl = self.config.rl
        used = credit.valid if in_loss(rl) or rl.entropy_coef else credit.used
        groups = np.arange(len(trajectories)).reshape(-1, self.config.rollout.group_size)
        useful = np.flatnonzero(used[groups].any(axis=1))
        # A value model that knows nothing yet would mislead the policy.
        ready = not state.value or step > rl.value.warmup_steps
        minibatches: list[list[Batch]] = []
        made_of: list[tuple[list[Layout], list[Sample]]] = []
        means: list[dict[str, float]] = []
        real = padded = 0
        for part in np.array_split(useful, rl.minibatches):
            chosen = [int(i) for i in groups[part].flat if used[i]]
            if not chosen:
                continue
            samples = self._samples(chosen, trajectories, credit)
            layouts = self._layouts([len(sample.tokens) for sample in samples])
            real += sum(len(sample.tokens) for sample in samples)
            padded += sum(math.prod(layout.shape) for layout in layouts)
            minibatches.append(fill(layouts, samples, rl.pack))
            made_of.append((layouts, samples))
        order = _order(len(minibatches), rl.epochs, self.config.seed, step)
        for i in order:
            state, values = self.updater.update(state, minibatches[i], reference, ready)
            means.append(values)
        metrics = _metrics(means, rl.max_staleness) | {"rl/real_tokens": real / max(padded, 1)}
        if means and rl.measure_after:
            layouts, samples = made_of[order[-1]]
            most = fullest(self.shapes())
            whole = [dataclasses.replace(of, shape=most[of.shape[1]]) for of in layouts]
            after = self.updater.measure(state, fill(whole, samples, rl.pack))
            metrics |= {f"rl/{name}": value for name, value in after.items()}
        return state, metrics | credit.metrics

    def _samples(
        self, chosen: Sequence[int], trajectories: Sequence[Trajectory], credit: Credit
    ) -> list[Sample]:
        """What the chosen ones train on."""
        drawn = self.config.rollout.loss_log_probs == "drawn"
        return [
            sample for i in chosen for sample in samples_of(
                trajectories[i], credit.advantages[i],
                {name: of[i] for name, of in credit.fields.items()}, drawn, credit.audio[i],
                shares=has_shares(self.config.rl),
            )
        ]

    def _scores(
        self, state: TrainState, reference: Params | None, trajectories: Sequence[Trajectory],
        audio: Sequence[AudioInputs | None],
    ) -> dict[str, list[np.ndarray]]:
        """What `Updater.score` says, by its name: per trajectory one number per token."""
        samples = [
            sample for t, of in zip(trajectories, audio, strict=True)
            for sample in samples_of(t, 0.0, audio_inputs=of, choices=False)
        ]
        lengths = [len(sample.tokens) for sample in samples]
        layouts = self._layouts(lengths)
        said = self.updater.score(state, fill(layouts, samples, self.config.rl.pack), reference)
        return {
            name: _rejoined(trajectories, take_out(layouts, of, lengths))
            for name, of in said.items()
        }

    def _layouts(self, lengths: Sequence[int]) -> list[Layout]:
        tokens = self.config.rl.micro_batch_tokens
        if self.config.rl.pack:
            longest = self.config.rollout.max_episode_tokens
            return packed_layouts(lengths, tokens, longest, self.row_shards)
        return padded_layouts(lengths, tokens, self.row_shards)


def kept_table(config: RunConfig, run_dir: Path) -> Table | None:
    """The table of calibrated turns, kept with the run: its file may change meanwhile.

    Raises InputError where `reward.calibration` is no table.
    """
    if not config.reward.calibration:
        return None
    kept = run_dir / "calibration.json"

    def keep() -> None:
        if not kept.exists():
            path = Path(config.reward.calibration).expanduser()
            load_table(path)
            shutil.copyfile(path, kept)

    hosts.from_first(keep)
    return load_table(kept)


def _rejoined(
    trajectories: Sequence[Trajectory], values: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Per trajectory one number per token, from those of its parts, in order."""
    remaining, found = iter(values), []
    for trajectory in trajectories:
        whole = np.zeros(trajectory.num_tokens)
        for at, counts in trajectory.parts():
            whole[at[counts]] = next(remaining)[counts]
        found.append(whole)
    return found


def _order(count: int, epochs: int, seed: int, step: int) -> list[int]:
    """The minibatches of a step's updates: in order, and in each later epoch shuffled anew."""
    order = list(range(count))
    for epoch in range(1, epochs):
        order += np.random.default_rng([seed, 4, step, epoch]).permutation(count).tolist()
    return order


def _metrics(means: Sequence[dict[str, float]], max_staleness: int) -> dict[str, float]:
    """Of a step, from those of its updates.

    max_staleness: above 0 the sampler is a policy of before, so that its log-probs are expected to
      be others.
    """
    if not means:
        return {}
    first, last = means[0], means[-1]

    def mean(name: str) -> float:
        return float(np.mean([m[name] for m in means]))

    return {
        "rl/loss": mean("loss"),
        "rl/kl": last["kl"],
        "rl/kl_reference": last["kl_reference"],
        "rl/entropy": first["entropy"],
        "rl/clip_fraction": mean("clipped"),
        "rl/grad_norm": mean("grad_norm"),
        # Before any update of this step both sides hold the same parameters, unless one is ahead.
        gap_name(max_staleness): first["gap"],
        f"{gap_name(max_staleness)}_max": first["gap_max"],
        **{f"rl/{name}": mean(name) for name in ("value_loss", "value_grad_norm") if name in first},
    }
