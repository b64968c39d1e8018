"""A wrong config is refused with a message that names the key, the value and the remedy."""

import dataclasses

import pytest

from tarl_jax.config import ConfigError, RunConfig, from_config_dict, to_config_dict


def refused(data):
    with pytest.raises(ConfigError) as caught:
        from_config_dict(data)
    return str(caught.value)


def nested(key, value):
    """{"a": {"b": value}} of "a.b"."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def test_defaults_are_valid_and_need_nothing():
    assert from_config_dict({}) == RunConfig()


def test_round_trip_through_a_config_dict():
    assert from_config_dict(to_config_dict(RunConfig())) == RunConfig()
    changed = to_config_dict(RunConfig())
    changed.rl.learning_rate = 3e-4
    changed.model.d_model = 256
    changed.tasks.requests = (0.5, 0.5)
    got = from_config_dict(changed)
    assert (got.rl.learning_rate, got.model.d_model) == (3e-4, 256)
    assert got.tasks.requests == (0.5, 0.5)
    assert got.reward == RunConfig().reward


def test_what_is_not_given_keeps_its_default():
    got = from_config_dict({"reward": {"major_scale": 3.0}})
    assert got.reward == dataclasses.replace(RunConfig().reward, major_scale=3.0)
    assert got.rl == RunConfig().rl


def test_a_group_in_part_keeps_the_defaults_of_its_place():
    # A judge's language model has defaults of its own.
    got = from_config_dict({"judge": {"kind": "llm", "llm": {"model": "m"}}}).judge.llm
    assert got == dataclasses.replace(RunConfig().judge.llm, model="m")
    assert got.temperature == 0 != RunConfig().user.llm.temperature


@pytest.mark.parametrize("key, suggestion", [
    ("seeds", "did you mean 'seed'?"),
    ("rl.learning_rat", "did you mean 'learning_rate'?"),
    ("warm_start.clerk.transfers", "did you mean 'transfer'?"),
    ("reward.zzz", "known keys: placement, terminal_scale"),
])
def test_an_unknown_key_is_named_with_a_suggestion(key, suggestion):
    message = refused(nested(key, 1))
    assert f"'config.{key}'" in message
    assert suggestion in message


@pytest.mark.parametrize("key, value, expected", [
    ("rl.steps", 1.5, "int"),
    ("rl.steps", 3.0, "int"),
    ("rl.steps", "3", "int"),
    ("rl.steps", True, "int"),
    ("rl.steps", None, "int"),
    ("rl.learning_rate", "1e-4", "float"),
    ("rl.learning_rate", True, "float"),
    ("model.qk_norm", 1, "bool"),
    ("name", 7, "str"),
    ("rl", 3, "a group of keys"),
])
def test_a_wrong_type_is_named(key, value, expected):
    message = refused(nested(key, value))
    assert f"config.{key} = {value!r}" in message
    assert f"expected {expected}" in message


@pytest.mark.parametrize("value", [0.5, "10", ("a", "b"), ("0.5", "0.5"), (None,), None, (True,)])
def test_a_list_of_numbers_is_nothing_else(value):
    message = refused({"tasks": {"requests": value}})
    assert f"config.tasks.requests = {value!r}: expected a list of numbers" in message


def test_an_int_is_good_for_a_float():
    got = from_config_dict({"reward": {"major_scale": 3}, "tasks": {"requests": [1]}})
    assert type(got.reward.major_scale) is float
    assert got.tasks.requests == (1.0,) and type(got.tasks.requests[0]) is float


@pytest.mark.parametrize("key, value, remedy", [
    ("reward.placement", "turn", "choose one of trajectory, stage, turn_end, terminal"),
    ("reward.denominator", "both", "choose one of taken, expert"),
    ("rl.normalise", "std", "choose one of group, batch, scale, none"),
    ("rollout.system_prompt", "long", "choose one of auto, brief, full"),
    ("eval.temperature", -0.1, "at least 0"),
    ("eval.top_k", -2, "at least 0"),
    ("eval.top_p", 0.0, "must be above 0: for the likeliest"),
    ("eval.min_p", 1.5, "at least 0 and at most 1, or -1"),
    ("eval.split", "test", "names a split of published data"),
    ("sandbox.tool_schemas", "mine", "choose one of data, own"),
    ("rollout.tasks_per_step", 0, "at least 1"),
    ("rollout.slots", 0, "at least 1"),
    ("rollout.max_turns", -2, "at least -1"),
    ("rl.minibatches", 0, "at least 1"),
    ("rl.epochs", 0, "at least 1"),
    ("rl.dual_clip", 1.0, "must be above 1, e.g. 3, or 0"),
    ("rollout.refills", -1, "at least 0"),
    ("rollout.after_transfer", "stop", "choose one of rules, end, go on"),
    ("rollout.max_errors", -2, "at least -1"),
    ("sandbox.rules", "tau3", "choose one of , tau, tau2"),
    ("rl.micro_batch_tokens", 0, "at least 1"),
    ("checkpoint.every", 0, "at least 1"),
    ("checkpoint.keep", 0, "at least 1"),
    ("eval.trials", 0, "at least 1"),
    ("eval.tasks", 0, "at least 1"),
    ("eval.final_tasks", 0, "at least 1"),
    ("rollout.max_turn_tokens", 0, "at least 1"),
    ("model.num_layers", 0, "at least 1"),
    ("model.num_heads", 0, "at least 1"),
    ("model.num_kv_heads", 0, "at least 1"),
    ("model.num_kv_heads", -1, "at least 1"),
    ("rollout.group_size", 1, "at least 2 episodes"),
    ("rollout.temperature", 0.0, "must be above 0"),
    ("tasks.forbidden", 1.1, "between 0 and 1"),
    ("tasks.change_mind", -0.1, "between 0 and 1"),
    ("tasks.max_idle", 3.0, "between 0 and 1"),
    ("tasks.forbidden", float("nan"), "between 0 and 1"),
    ("rollout.straggler_fraction", 2.0, "between 0 and 1"),
    ("warm_start.clerk.skip_confirmation", 12.0, "between 0 and 1"),
    ("warm_start.clerk.redundant_read", -0.5, "between 0 and 1"),
    ("model.num_kv_heads", 3, "must divide model.num_heads"),
    ("rl.minibatches", 3, "must divide rollout.tasks_per_step"),
    ("tasks.requests", (0.5, 0.6), "must sum to 1"),
    ("tasks.requests", (), "must sum to 1"),
    ("tasks.requests", (1.5, -0.5), "must sum to 1"),
    ("rl.learning_rate", 0.0, "must be above 0"),
    ("maths.mode", "mix", "choose one of replace, add"),
    ("maths.ratio", (), "at least one share"),
    ("maths.ratio", (-0.1,), "at least 0"),
    ("maths.ratio", (1.5,), "at most 1"),
    ("maths.ratio", (float("nan"),), "at least 0"),
    ("maths.ratio_steps", (0.0, 5.0), "a rising step for each of maths.ratio"),
    ("maths.num_train", 0, "at least 1"),
    ("maths.num_held_out", 0, "at least 1"),
    ("maths.band_problems", 0, "at least 1"),
    ("maths.band_trials", 0, "at least 1"),
    ("maths.levels", (0.5, 0.5), "five shares"),
    ("maths.levels", (0.5, 0.5, 0.5, 0.0, 0.0), "sum to 1"),
    ("maths.min_pass", 1.0, "below maths.max_pass"),
    ("maths.tfds_features", ("problem",), "give two names, of the problem and of the answer"),
    ("maths.demonstrations", 1.0, "below 1"),
    ("eval.maths_tasks", -1, "between 0 and maths.num_held_out"),
    ("eval.maths_tasks", 129, "between 0 and maths.num_held_out = 128"),
    ("rl.advantage", "ppo", "choose one of grpo, rloo, gae, single_stream"),
    ("rl.loss", "kl", "choose one of clip, spo, gspo"),
    ("rl.loss_mean", "batch", "choose one of token, sequence, constant"),
    ("rl.kl_estimator", "k4", "choose one of k1, k2, k3"),
    ("rl.kl_in", "value", "choose one of loss, reward"),
    ("rl.value.trunk", "none", "choose one of own, shared"),
    ("reward.turn_weight", -1.0, "at least 0"),
    ("reward.turn_cap", -1.0, "at least 0"),
    ("reward.max_majors", -1, "at least 0"),
    ("rl.warmup_steps", -1, "at least 0"),
    ("rl.weight_decay", -0.1, "at least 0"),
    ("rl.clip_low", -0.1, "at least 0"),
    ("rl.clip_high", -0.1, "at least 0"),
    ("rl.kl_coef", -1e-3, "at least 0"),
    ("rl.entropy_coef", -0.1, "at least 0"),
    ("rl.tis_cap", -2.0, "at least 0"),
    ("rl.value.warmup_steps", -1, "at least 0"),
    ("rl.value.clip", -1.0, "at least 0"),
    ("rl.value.coef", -1.0, "at least 0"),
    ("rl.max_grad_norm", 0.0, "must be above 0"),
    ("rl.loss_constant", 0, "must be above 0"),
    ("rl.value.learning_rate", 0.0, "must be above 0"),
    ("rl.baseline_decay", 1.5, "between 0 and 1"),
    ("rl.value.discount", -0.1, "between 0 and 1"),
    ("rl.value.trace", 2.0, "between 0 and 1"),
    ("reward.placement", "turn_end", "set rl.advantage to gae"),
    ("rl.loss", "spo", "has one bound: set rl.clip_low"),
    ("rl.loss", "gspo", "set rl.loss_mean to sequence"),
    ("speech.share", 1.0,
     "a policy without an audio encoder hears no speech: set model.audio.encoder_layers"),
    ("model.audio.encoder_layers", -1, "at least 0"),
    ("model.audio.num_mel_bins", 0, "at least 1"),
    ("model.audio.encoder_ffn_dim", 0, "at least 1"),
    ("model.audio.encoder_attention_heads", 0, "at least 1"),
    ("model.audio.encoder_attention_heads", 3, "model.audio.d_model = 1280: must be even"),
    ("model.audio.d_model", 2, "at least 4, a multiple of encoder_attention_heads = 20"),
    ("model.audio.max_source_positions", 99, "model.audio.n_window = 100: must be even"),
    ("model.audio.n_window", 5, "must be even"),
    ("model.audio.encoder_layers", 2, "output_dim = 3584: must be model.d_model = 128"),
    ("speech.engine", "festival", "choose one of espeak, piper, server, recordings"),
    ("speech.per", "word", "choose one of episode, turn"),
    ("speech.audio_format", "mp3", "choose one of wav, pcm"),
    ("speech.share", 1.5, "between 0 and 1"),
    ("speech.timeout_seconds", 0.0, "must be above 0"),
    ("speech.workers", 0, "at least 1"),
    ("speech.retries", -1, "at least 0"),
    ("speech.speed", (1.0,), "the least and the largest"),
    ("speech.speed", (1.2, 1.0), "the least and the largest"),
    ("speech.pitch", (0.0, 1.5), "both from 0 to 1"),
    ("speech.voices", (), "at least one voice"),
    ("speech.voices", ("",), "at least one voice"),
    ("judge.kind", "human", "choose one of rules, llm"),
    ("judge.max_majors", 0, "at least 1"),
    ("judge.max_seconds", 0.0, "must be above 0"),
    ("judge.llm.model", "", "name the model"),
    ("judge.noise.flip", 1.5, "between 0 and 1"),
    ("judge.noise.optimism", -0.1, "between 0 and 1"),
    ("judge.noise.abstain", float("nan"), "between 0 and 1"),
    ("user.kind", "human", "choose one of scripted, llm"),
    ("user.strategy", "cot", "choose one of llm, react, verify, reflection"),
    ("user.max_calls", 0, "at least 1"),
    ("user.max_seconds", 0.0, "must be above 0"),
    ("user.llm.model", "", "name the model"),
    ("user.llm.base_url", "localhost:8000", "should look like http://localhost:8000/v1"),
    ("user.llm.timeout_seconds", 0.0, "must be above 0"),
    ("user.llm.max_attempts", 0, "must be above 0"),
    ("user.llm.max_in_flight", 0, "must be above 0"),
    ("user.llm.max_tokens", -1, "at least 0"),
    ("user.llm.backoff_seconds", -1.0, "at least 0"),
    ("user.llm.requests_per_minute", -1, "at least 0"),
    ("user.llm.tokens_per_minute", -1, "at least 0"),
    ("user.llm.max_calls", -1, "at least 0"),
    ("user.llm.usd_per_million_input", -1.0, "at least 0"),
    ("user.llm.max_usd", 5.0, "needs user.llm.usd_per_million_input"),
])
def test_a_value_that_no_run_can_use_is_refused_with_the_remedy(key, value, remedy):
    message = refused(nested(key, value))
    assert "config." in message and repr(value) in message
    assert remedy in message


@pytest.mark.parametrize("fields, remedy", [
    ({"rl": {"advantage": "gae", "normalise": "none"}, "reward": {"turn_weight": 0.5}},
     "config.reward.turn_weight = 0.5: a turn's score is normalised by its group"),
    ({"reward": {"placement": "terminal", "calibration": "table.json"}},
     "config.reward.calibration = 'table.json': no turn is rewarded"),
    ({"rl": {"kl_estimator": "k1", "kl_coef": 0.1}}, "set rl.kl_in to reward"),
    ({"eval": {"domain": "airline"}, "rollout": {"constrain_calls": True}},
     "its grammar is of the training domain's tools"),
    ({"rl": {"advantage": "gae", "normalise": "batch", "loss": "gspo", "loss_mean": "sequence"}},
     "choose clip or spo"),
    ({"rl": {"advantage": "gae", "normalise": "batch"}, "rollout": {"group_size": 0}},
     "config.rollout.group_size = 0: must be at least 1"),
    ({"rl": {"loss": "spo", "clip_low": 0.2, "clip_high": 0.2, "minibatches": 1}},
     "set rl.minibatches or rl.epochs to 2 or more"),
    ({"rl": {"loss": "gspo", "loss_mean": "sequence", "minibatches": 1}},
     "set rl.minibatches or rl.epochs to 2 or more"),
    ({"rl": {"loss": "spo", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}},
     "config.rl.dual_clip = 3.0: rl.loss = 'spo' has no clip"),
    ({"rollout": {"refills": 2}, "rl": {"max_staleness": 1}},
     "config.rollout.refills = 2: rl.max_staleness = 1 plays episodes in other steps"),
    ({"rollout": {"refills": 2, "step_seconds": 9.0}},
     "config.rollout.refills = 2: rollout.step_seconds = 9.0 plays episodes in other steps"),
    ({"rollout": {"refills": 2}, "rl": {"advantage": "gae", "normalise": "batch"}},
     "config.rollout.refills = 2: with rl.advantage = 'gae'"),
    ({"tasks": {"file": "a.jsonl", "tfds": ("b",)}}, "config.tasks.tfds = ('b',): tasks.file ="),
    ({"maths": {"file": "a.json", "tfds": ("b",)}}, "config.maths.tfds = ('b',): maths.file ="),
])
def test_what_does_not_go_together_is_refused(fields, remedy):
    assert remedy in refused(fields)


@pytest.mark.parametrize("fields", [
    {"rl": {"advantage": "single_stream", "normalise": "batch"}, "rollout": {"group_size": 1}},
    {"rl": {"advantage": "gae", "normalise": "none"}, "reward": {"placement": "turn_end"}},
    {"reward": {"placement": "terminal", "turn_weight": 0.5, "calibration": "table.json"}},
    {"rl": {"kl_estimator": "k1", "kl_in": "reward", "kl_coef": 0.1}},
    {"rl": {"loss": "gspo", "loss_mean": "sequence", "minibatches": 1, "epochs": 2}},
    {"rl": {"loss": "gspo", "loss_mean": "sequence", "minibatches": 1, "max_staleness": 1}},
    {"rl": {"minibatches": 1}, "rollout": {"refills": 2}},
])
def test_what_goes_together_is_taken(fields):
    got = from_config_dict(fields)
    assert got.rollout.group_size == fields.get("rollout", {}).get("group_size", 8)


@pytest.mark.parametrize("chain, remedy", [
    ("echo", "no effect 'echo': choose of white"),
    ("white", "write white:NUMBER or white:LEAST..MOST, the signal-to-noise ratio in dB, from -20"
              " to 60"),
    ("white:9..5", "write white:NUMBER or white:LEAST..MOST"),
    ("white:5..", "write white:NUMBER or white:LEAST..MOST"),
    ("white:loud", "write white:NUMBER"),
    ("reverb:9", "from 0.1 to 5"),
    ("telephone:8", "takes no number"),
    ("clean+telephone", "no effect 'clean'"),
    ("", "no effect ''"),
])
def test_a_chain_of_effects_that_cannot_be_read_is_refused(chain, remedy):
    message = refused({"speech": {"acoustics": ("clean", "reverb:0.4+babble:15", chain)}})
    assert f"config.speech.acoustics = {chain!r}" in message
    assert remedy in message


@pytest.mark.parametrize("speech, key", [
    ({"engine": "server", "model": "m"}, "base_url"),
    ({"engine": "server", "base_url": "http://localhost/v1"}, "model"),
    ({"engine": "server", "base_url": "http://x", "model": "m", "api_key_env": ""}, "api_key_env"),
    ({"engine": "recordings"}, "recordings"),
    ({"engine": "recordings", "recordings": "x", "acoustics": ("babble:5",)}, "acoustics"),
])
def test_an_engine_needs_what_it_needs(speech, key):
    assert f"config.speech.{key} = " in refused({"speech": speech})


@pytest.mark.parametrize("key, value", [
    ("speech.pitch", (0.0, 1.0)), ("speech.speed", (1.0, 1.0)),
    ("tasks.forbidden", 0.0), ("tasks.forbidden", 1.0), ("rollout.straggler_fraction", 1.0),
    ("warm_start.clerk.transfer", 0.0), ("tasks.requests", (0.0, 1.0)), ("rl.minibatches", 16),
])
def test_the_ends_of_a_range_are_inside(key, value):
    group, _, field = key.rpartition(".")
    got = from_config_dict(nested(key, value))
    for part in group.split("."):
        got = getattr(got, part)
    assert getattr(got, field) == value


def test_maths_on_top_of_the_tool_tasks_may_outnumber_them():
    got = from_config_dict({"maths": {"mode": "add", "ratio": [0.0, 2.0], "ratio_steps": [1, 9]}})
    assert got.maths.ratio == (0.0, 2.0) and got.maths.ratio_steps == (1.0, 9.0)
    falling = {"maths": {"ratio": [0.1, 0.2], "ratio_steps": [9, 1]}}
    assert "a rising step" in refused(falling)
    assert "must be at least 0 and below maths.max_pass = 1.5" in refused(
        {"maths": {"max_pass": 1.5}})


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 1


@pytest.mark.parametrize("data, named", [
    ({"reward": {"placement": "stage"}, "rl": {"normalise": "group"}}, "rl.normalise"),
    ({"reward": {"placement": "stage"}, "rl": {"advantage": "gigpo", "normalise": "scale"}},
     "choose grpo or rloo"),
    ({"reward": {"placement": "stage", "before_major_only": True}}, "is for whole episodes"),
    ({"rl": {"advantage": "gigpo"}}, "is grpo without it"),
    ({"rl": {"advantage": "mt_grpo"}}, "is grpo without it"),
    ({"rl": {"advantage": "gdpo"}}, "divides each reward by its own spread"),
    ({"rl": {"advantage": "return_to_go", "normalise": "group"}}, "compares turn by turn"),
    ({"rl": {"advantage": "gae", "normalise": "group"}}, "has no group: choose batch or none"),
    ({"rl": {"advantage": "single_stream", "normalise": "group"}}, "has no group"),
    ({"rl": {"advantage": "return_to_go", "normalise": "scale", "kl_coef": 0.1,
             "kl_in": "reward"}}, "has no place among parts of episodes"),
    ({"reward": {"abstained": "none"}}, "choose one of group, member"),
    ({"rl": {"value": {"step": "word"}}}, "choose one of token, turn"),
])
def test_ways_of_credit_that_mean_nothing_are_refused(data, named):
    assert named in refused(data)


def test_a_recording_is_written_or_replayed():
    message = refused({"user": {"llm": {"record": "a", "replay": "b"}}})
    assert "choose one of user.llm.record and user.llm.replay" in message


@pytest.mark.parametrize("group", ["user.llm", "judge.llm", "speech"])
@pytest.mark.parametrize(("field", "secret"), [
    ("api_key_env", "sk-abc123"), ("api_key_env", "0123abcd"), ("api_key_env", "abcdef"),
    ("api_key_env", "AKIAIOSFODNN7EXAMPLE"), ("api_key_env", "A1B2C3D4E5F6A7B8C9D0E1F2"),
    ("base_url", "https://me:hunter2@host/v1"), ("base_url", "https://hunter2@host/v1"),
    ("base_url", "https://host/v1?api_key=hunter2"), ("base_url", "https://host/v1?TOKEN=hunter2"),
    ("base_url", "https://host/v1?x=sk-live-0123456789abcdefgh"),
    ("base_url", "https://host/sk-proj-0123456789abcdefgh/v1"),
    ("base_url", "https://host/v1#hunter2"), ("base_url", "http://[hunter2/v1"),
    ("base_url", "http://host:hunter2/v1"), ("base_url", "me:hunter2@host"),
])
def test_a_secret_in_a_config_is_refused_and_not_repeated(group, field, secret):
    data = {field: secret}
    for name in reversed(group.split(".")):
        data = {name: data}
    message = refused(data)
    assert f"config.{group}.{field}" in message
    assert secret not in message and "hunter2" not in message


@pytest.mark.parametrize("url", [
    "", "http://localhost:8000/v1", "https://api.openai.com/v1", "http://[::1]:8000/v1",
    "https://x.openai.azure.com/openai/v1?api-version=2024-10-21",
    "https://api.cloudflare.com/client/v4/accounts/0123456789abcdef0123456789abcdef/ai/v1",
])
def test_an_address_without_a_secret_is_taken(url):
    config = from_config_dict({"user": {"llm": {"base_url": url}}, "speech": {"base_url": url}})
    assert config.user.llm.base_url == config.speech.base_url == url


def test_users_may_speak_to_a_policy_that_hears():
    encoder = {"encoder_layers": 2, "output_dim": 128}
    got = from_config_dict({"speech": {"share": 1.0}, "model": {"audio": encoder}})
    assert got.model.audio and got.speech.share == 1.0
    assert not RunConfig().model.audio


@pytest.mark.parametrize("data, key", [
    ({"eval": {"spoken": ["clean"]}}, "eval.spoken"),
    ({"curriculum": {"spoken": 0.5}}, "curriculum.spoken"),
    ({"curriculum": {"maths": 0.5}}, "curriculum.maths"),
    ({"curriculum": {"warmup_steps": -1}}, "curriculum.warmup_steps"),
    ({"warm_start": {"speech_stage": {"episodes": -1}}}, "warm_start.speech_stage.episodes"),
    ({"warm_start": {"speech_stage": {"joint_rate": 0.0}}}, "warm_start.speech_stage.joint_rate"),
    ({"eval": {"spoken": ["mumble"]},
      "model": {"audio": {"encoder_layers": 2, "output_dim": 128}}}, "eval.spoken"),
])
def test_what_only_an_audio_encoder_and_a_mix_can_use_needs_them(data, key):
    assert f"config.{key} = " in refused(data)
