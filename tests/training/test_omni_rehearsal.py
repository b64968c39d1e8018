"""A dress rehearsal of Qwen2.5-Omni-3B's path on a CPU: everything is real but the weights.

A whole random checkpoint in Omni's layout, talker and vocoder included, with Omni's vocabulary and
Qwen's own tokenizer and markup; users who speak in half of their turns and write in the others; two
steps in which the encoder trains too, and an export that transformers loads. (test_policy.py has a
frozen encoder.)
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from phone_call import Call, Clock
from pretrained import write_omni

from tarl_jax.config import from_config_dict
from tarl_jax.config.presets import with_speech
from tarl_jax.models.hf_config import completed
from tarl_jax.models.tensor_files import open_tensors
from tarl_jax.rollout.sampling import Sampling
from tarl_jax.rollout.telephone import Telephone
from tarl_jax.runs.metrics import read_metrics, read_trajectories, trajectory_files
from tarl_jax.serve.policy import load_policy
from tarl_jax.speech.synthesis import SAMPLE_RATE, Voice
from tarl_jax.training.parts import Parts
from tarl_jax.training.policy import export
from tarl_jax.training.train import train

TOKENIZER = Path(__file__).parents[3] / "shared/qwen"
VOCAB, END, PADDING = 151_936, 151_645, 151_669
AUDIO, AUDIO_START, AUDIO_END = 151_646, 151_647, 151_648
# Omni's names for entries of the vocabulary that the other models of its family share.
RENAMED = {"<|object_ref_start|>": "<|AUDIO|>", "<|object_ref_end|>": "<|audio_bos|>",
           "<|box_start|>": "<|audio_eos|>"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*tensors are left out"),
    pytest.mark.skipif(not TOKENIZER.is_dir(),
                       reason="Qwen's tokenizer is not beside the checkout (shared/)"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("omni")
    model = write_omni(folder, VOCAB, (AUDIO_START, AUDIO, AUDIO_END))
    with torch.no_grad():
        embedding, head = (layer.weight for layer in (
            model.thinker.get_input_embeddings(), model.thinker.get_output_embeddings()))
        embedding.normal_(0, 0.3)
        embedding[:, 0] = 3.0  # so that the last hidden state's first entry is nearly the same
        head.normal_(0, 0.15)
        head[:, 0] = 0.0
        head[END, 0] = 1.9  # a turn ends after some twenty random tokens
    model.save_pretrained(folder)
    text = gzip.decompress((TOKENIZER / "tokenizer.json.gz").read_bytes()).decode()
    settings = (TOKENIZER / "tokenizer_config.json").read_text()
    for old, new in RENAMED.items():
        text, settings = text.replace(old, new), settings.replace(old, new)
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text(settings)
    return folder


@pytest.fixture(scope="module")
def played(checkpoint, tmp_path_factory):
    """The config of a run of two steps that has ended."""
    config = with_speech("qwen2_5_omni_3b")
    config.workdir, config.rl.steps = str(tmp_path_factory.mktemp("rehearsal") / "run"), 2
    config.model.pretrained = str(checkpoint)
    config.speech.update({"share": 0.5, "per": "turn", "voices": ("en-us", "en"),
                          "acoustics": ("telephone", "white:10..20"), "clean": 0.5,
                          "acoustics_per": "turn",
                          "cache_dir": str(checkpoint.with_name("speech"))})
    config.mesh.update({"tensor": 1, "rollout_tensor": 1})
    config.rollout.update({
        "tasks_per_step": 2, "group_size": 2, "slots": 4, "max_turns": 4, "max_turn_tokens": 32,
        "max_episode_tokens": 1024, "max_too_long": 1.0, "thinking": "off",
        "system_prompt": "brief",
    })
    config.rl.update({
        "minibatches": 1, "micro_batch_tokens": 1024, "learning_rate": 1e-3, "encoder_rate": 1.0,
        "mask_truncated": False, "measure_after": False, "entropy_coef": 0.01,
    })
    config.eval.update({"tasks": 1, "final_tasks": 1, "trials": 1, "every": 0, "before": False})
    config = from_config_dict(config)
    train(config)
    return config


def test_two_steps_of_speech_and_text(played):
    steps = [row for row in read_metrics(played.workdir) if row["kind"] == "train"]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["rl/log_prob_gap"] < 0.02  # bfloat16 on both sides
        assert row["compilations"] == 0 and row["train/spoken"] > 0
        assert np.isfinite(row["rl/grad_norm"]) and row["rl/grad_norm"] > 0


def test_turns_are_sound_or_text_in_omnis_markup(played):
    kinds = set()
    for file in trajectory_files(Path(played.workdir)).values():
        for trajectory in read_trajectories(file):
            for segment in trajectory.segments:
                if segment.role != "user":
                    continue
                ids, sound = segment.token_ids, segment.sound
                kinds.add(sound is not None)
                if sound is None:
                    assert AUDIO not in ids
                    continue
                places = [i for i, token in enumerate(ids) if token == AUDIO]
                assert places == list(range(sound.first, sound.first + sound.tokens))
                assert ids[places[0] - 1] == AUDIO_START and ids[places[-1] + 1] == AUDIO_END
    assert kinds == {True, False}


def test_transformers_loads_what_is_exported(played, checkpoint, tmp_path):
    import transformers

    assert export(played, tmp_path / "out", -1, Parts()) == 2
    before, after = open_tensors(checkpoint), open_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(
        np.asarray(before[name], np.float32), np.asarray(after[name], np.float32))}
    assert any(name.startswith("thinker.model.") for name in changed)
    assert not any(name.startswith(("talker.", "token2wav.", "thinker.visual."))
                   for name in changed)
    tower = {name for name in changed if "audio_tower.layers" in name}
    moved = [np.abs(np.asarray(after[n], np.float32) - np.asarray(before[n], np.float32)).max()
             for n in tower]
    assert max(moved) > 5e-4  # two steps of at most 1e-3
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["thinker_config"]["audio_token_index"] == AUDIO
    model = transformers.Qwen2_5OmniForConditionalGeneration.from_pretrained(tmp_path / "out")
    head = model.thinker.get_output_embeddings().weight.detach().float().numpy()
    np.testing.assert_array_equal(head, np.asarray(after["thinker.lm_head.weight"], np.float32))


def test_by_telephone_it_answers_as_to_clips_that_are_whole(played):
    """Omni's own pieces of 2 s and markup, what eSpeak says, the policy of the last checkpoint."""
    own = Parts()
    _, env, params = load_policy(completed(played), own)
    try:
        clips = [env.speech.say(text, Voice("en-us", speed=0.8)) for text in (
            "Hello there, I would like to send back the lamp and the two chairs, please.",
            "It is order W one two three, and my name is Ada Lovelace.")]
        assert all(len(clip) > 3 * SAMPLE_RATE for clip in clips)
        clock = Clock()
        with Telephone(env, params, Sampling(0.0)) as telephone:
            telephone.clock, telephone.sleep = clock, clock.sleep
            whole, said = Call(env, None, clips), Call(env, telephone.say, clips)
            telephone.play(whole)
            telephone.play(said)
            wait = telephone.wait
    finally:
        env.close()
    assert wait.ahead >= 50 and wait.read < wait.sound
    assert [turn.ids for turn in said.turns] == [turn.ids for turn in whole.turns]
    for one, other in zip(said.turns, whole.turns, strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=0.05)  # bfloat16
