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
    ("reward.placement", "turn", "choose one of trajectory, terminal"),
    ("reward.denominator", "both", "choose one of taken, expert"),
    ("rl.normalise", "std", "choose one of group, batch, none"),
    ("rollout.system_prompt", "long", "choose one of brief, full"),
    ("rollout.tasks_per_step", 0, "at least 1"),
    ("rollout.slots", 0, "at least 1"),
    ("rollout.max_turns", -1, "at least 1"),
    ("rl.minibatches", 0, "at least 1"),
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
    ("eval.temperature", 0.0, "must be above 0"),
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
    ("sandbox.domain", "bank", "choose one of retail, airline"),
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
    assert f"config.{key} = {value!r}" in message
    assert remedy in message


@pytest.mark.parametrize("key, value", [
    ("tasks.forbidden", 0.0), ("tasks.forbidden", 1.0), ("rollout.straggler_fraction", 1.0),
    ("warm_start.clerk.transfer", 0.0), ("tasks.requests", (0.0, 1.0)), ("rl.minibatches", 16),
])
def test_the_ends_of_a_range_are_inside(key, value):
    group, _, field = key.rpartition(".")
    got = from_config_dict(nested(key, value))
    for part in group.split("."):
        got = getattr(got, part)
    assert getattr(got, field) == value


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 1


def test_a_domain_without_data_of_its_own_needs_a_folder():
    assert "config.sandbox.data = ''" in refused({"sandbox": {"domain": "airline"}})
    from_config_dict({"sandbox": {"domain": "airline", "data": "folder"}})


def test_a_recording_is_written_or_replayed():
    message = refused({"user": {"llm": {"record": "a", "replay": "b"}}})
    assert "choose one of user.llm.record and user.llm.replay" in message


@pytest.mark.parametrize(("field", "secret"), [
    ("api_key_env", "sk-abc123"), ("api_key_env", "0123abcd"), ("api_key_env", "abcdef"),
    ("base_url", "https://me:hunter2@host/v1"),
])
def test_a_secret_in_a_config_is_refused_and_not_repeated(field, secret):
    message = refused({"user": {"llm": {field: secret}}})
    assert f"config.user.llm.{field}" in message
    assert secret not in message and "hunter2" not in message
