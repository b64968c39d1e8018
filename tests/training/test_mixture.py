"""Which tasks a step takes: whole passes, the schedule of the mixture, and no memory."""

import dataclasses

import numpy as np
import pytest

from tarl_jax.config import CurriculumConfig, SpeechConfig
from tarl_jax.config.maths import MathsConfig
from tarl_jax.training.mixture import Mixture, TaskStream
from tarl_jax.types import Task


def tasks(count, kind):
    return [
        Task(f"{kind}-{n}", "", "", (), (), "train", kind, None, 1, kind=kind) for n in range(count)
    ]


TOOLS, MATHS = tasks(20, "tool"), tasks(7, "maths")


def mixture(seed=0, **fields):
    return Mixture(TOOLS, MATHS, 8, MathsConfig(**fields), seed)


def kinds(chosen):
    found = [t.kind for t in chosen]
    return found.count("tool"), found.count("maths")


def test_without_maths_the_tasks_are_those_of_the_plain_stream():
    """As it was before there were maths problems, by hand."""
    plain = mixture(seed=3)
    orders = [np.random.default_rng([3, epoch]).permutation(20) for epoch in range(3)]
    expected = [TOOLS[i] for i in np.concatenate(orders)]
    found = [t for step in range(1, 8) for t in plain.tasks(step)]
    assert found == expected[:56]


def test_every_pass_takes_every_task_once():
    stream = TaskStream(TOOLS, 0)
    first, second = stream.take(0, 20), stream.take(20, 20)
    for found in (first, second):
        assert sorted(t.task_id for t in found) == sorted(t.task_id for t in TOOLS)
    assert first != second


def test_maths_replaces_or_is_added():
    assert kinds(mixture(ratio=(0.25,)).tasks(1)) == (6, 2)
    assert kinds(mixture(ratio=(0.25,), mode="add").tasks(1)) == (8, 2)
    assert kinds(mixture(ratio=(0.75,)).tasks(1)) == (2, 6)


def test_the_schedule_is_linear_between_its_steps():
    mixed = mixture(ratio=(0.0, 0.5), ratio_steps=(3.0, 7.0))
    assert [mixed.counts(step)[1] for step in range(1, 10)] == [0, 0, 0, 1, 2, 3, 4, 4, 4]


def test_no_task_is_skipped_or_taken_early_while_the_shares_change():
    mixed = mixture(ratio=(0.0, 0.5), ratio_steps=(1.0, 9.0))
    found = [t for step in range(1, 20) for t in mixed.tasks(step)]
    for kind, all_tasks in (("tool", TOOLS), ("maths", MATHS)):
        names = [t.task_id for t in found if t.kind == kind]
        for begin in range(0, len(names) - len(all_tasks), len(all_tasks)):
            # The kinds are shuffled inside a step, so a pass may end in the middle of one.
            ahead = {n for n in names[: begin + len(all_tasks) + 8]}
            assert ahead == {t.task_id for t in all_tasks}
        counts = [names.count(t.task_id) for t in all_tasks]
        assert max(counts) - min(counts) <= 1


def test_a_step_is_the_same_whatever_was_asked_before():
    one, other = mixture(ratio=(0.25,)), mixture(ratio=(0.25,))
    for step in range(1, 9):
        one.tasks(step)
    assert one.tasks(5) == other.tasks(5)
    assert mixture(ratio=(0.25,), seed=1).tasks(5) != one.tasks(5)


def test_the_kinds_stand_mixed():
    mixed = mixture(ratio=(0.5,))
    orders = {tuple(t.kind for t in mixed.tasks(step)) for step in range(1, 9)}
    assert len(orders) > 4


def test_a_step_that_wants_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match=r"up to 8 maths problems, but there are only 7"):
        mixture(ratio=(0.1, 1.0), ratio_steps=(0.0, 5.0))
    with pytest.raises(ValueError, match=r"tasks_per_step = 21, but there are only 20"):
        Mixture(TOOLS, MATHS, 21, MathsConfig(), 0)


def planned(per="episode", share=0.5, **curriculum):
    return Mixture(
        TOOLS, MATHS, 8, MathsConfig(ratio=(0.25,)), 0, SpeechConfig(share=share, per=per),
        CurriculumConfig(**curriculum),
    )


def test_the_warm_up_goes_over_into_the_mix():
    mixed = planned(warmup_steps=4)
    assert [mixed.spoken(step) for step in range(1, 7)] == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    mixed = Mixture(TOOLS, MATHS, 8, MathsConfig(ratio=(0.25,)), 0, SpeechConfig(share=0.5),
                    CurriculumConfig(warmup_steps=4, spoken=1.0, maths=0.75))
    assert [mixed.counts(step) for step in range(1, 6)] == [(3, 5), (4, 4), (5, 3), (6, 2), (6, 2)]
    assert [mixed.spoken(step) for step in (1, 4, 9)] == [0.875, 0.5, 0.5]


def test_speech_is_clean_at_first_and_as_the_config_has_it_then():
    speech = SpeechConfig(share=0.5, acoustics=("telephone",), clean=0.2)
    for per in ("episode", "turn"):
        chosen = Mixture(TOOLS, [], 8, MathsConfig(), 0, dataclasses.replace(speech, per=per),
                         CurriculumConfig(warmup_steps=4, clean=1.0))
        clean = [{one.clean for one in chosen.plan(step)} for step in range(1, 7)]
        for found, share in zip(clean, (0.8, 0.6, 0.4, 0.2, 0.2, 0.2), strict=True):
            assert list(found) == pytest.approx([share])
        assert chosen.state(2)["clean"] == pytest.approx(0.6)
        again = chosen.further(1, 0, chosen.plan(1), set())
        assert [one.clean for one in again] == pytest.approx([0.8] * len(again))
    plain = Mixture(TOOLS, [], 8, MathsConfig(), 0, SpeechConfig(share=0.5))
    assert "clean" not in plain.state(2)  # which checkpoints of before do not have


def test_so_many_users_speak_and_no_problem_is_spoken():
    mixed = planned()
    spoken = [[p.spoken for p in mixed.plan(step) if p.task.kind == "tool"] for step in range(1, 9)]
    assert all(sorted(of) == [0.0] * 3 + [1.0] * 3 for of in spoken)
    assert len(set(map(tuple, spoken))) > 3  # not always the same places
    assert {p.spoken for p in mixed.plan(1) if p.task.kind == "maths"} == {0.0}
    assert [p.task for p in mixed.plan(3)] == mixed.tasks(3)
    assert {p.spoken for p in planned(per="turn").plan(1)} == {0.5}


def test_the_state_says_where_the_schedule_stands():
    mixed = planned(warmup_steps=2)
    assert mixed.state(0) == {"tools_taken": 0, "maths_taken": 0, "maths": 0.0, "spoken": 0.0}
    assert mixed.state(1) == {"tools_taken": 7, "maths_taken": 1, "maths": 0.125, "spoken": 0.25}
    assert mixed.state(3) == {"tools_taken": 19, "maths_taken": 5, "maths": 0.25, "spoken": 0.5}


def test_further_tasks_are_of_the_same_kinds_and_new_to_the_step():
    mixed = mixture(ratio=(0.25,))
    places = mixed.plan(3)
    taken = {(one.task.kind, one.task.task_id) for one in places}
    found = mixed.further(3, 1, places, taken)
    assert [one.task.kind for one in found] == [one.task.kind for one in places]
    names = {(one.task.kind, one.task.task_id) for one in found}
    assert len(names) == len(places) and not names & taken
    assert found == mixture(ratio=(0.25,)).further(3, 1, places, taken)  # no memory
    for other in (mixed.further(4, 1, places, taken), mixed.further(3, 2, places, taken),
                  mixture(1, ratio=(0.25,)).further(3, 1, places, taken)):
        assert other != found


def test_tasks_come_again_once_a_step_has_had_all():
    mixed = mixture(ratio=(0.75,))
    maths = [one for one in mixed.plan(1) if one.task.kind == "maths"]
    places = [*maths, *maths[:2]]  # 8 places, 7 problems
    ids = {t.task_id for t in MATHS}
    found = mixed.further(1, 1, places, {("maths", name) for name in ids - {"maths-4"}})
    assert found[0].task.task_id == "maths-4"  # the only new one comes first
    assert len(found) == 8 and {one.task.task_id for one in found} == ids
