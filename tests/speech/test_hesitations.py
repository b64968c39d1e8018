"""Hesitations: more is said than is written, and all that is written, in its order."""

import random

import pytest

from tarl_jax.config.speech import parse_chain
from tarl_jax.speech.hesitations import hesitate, words_of

TEXT = ("Hi, my name is Vera Moore. I want to return the lamp of order hash W one two three,"
        " and my email is vera dot moore at mail dot com.")


def is_within(text, said):
    """Whether all words of a text are said, in their order."""
    rest = iter(word.rstrip(",.") for word in said.split())
    return all(word.rstrip(",.") in rest for word in text.split())


def test_all_that_is_written_is_said():
    found = {hesitate(TEXT, 0.2, random.Random(seed)) for seed in range(200)}
    assert len(found) > 150 and all(is_within(TEXT, said) for said in found)
    together = " | ".join(found)
    for part in (" uh,", " um,", "hold on, please,", "Vera Moore, V E R A, M O O R E.",
                 "I want, I want"):
        assert part in together, part


def test_as_often_as_asked():
    words = "word " * 400 + "word"
    said = hesitate(words, 0.1, random.Random(0))
    assert said.count(",") == pytest.approx(2 * 40, abs=25)  # behind the word, behind what is new
    assert hesitate(TEXT, 0.0, random.Random(0)) == TEXT


def test_nothing_that_counts_is_said_twice():
    for seed in range(300):
        said = hesitate("It is hash W one two three four.", 0.5, random.Random(seed))
        assert said.split().count("one") + said.split().count("one,") == 1
        assert sum(word.rstrip(",") == "W" for word in said.split()) == 1


def test_only_names_amid_a_sentence_are_spelled():
    said = [hesitate("Please Cancel it. Thank You, I live in Oak Street.", 1e-9,
                     random.Random(seed)) for seed in range(50)]
    together = " ".join(said)
    assert "Oak Street, O A K, S T R E E T." in together
    assert "P L E A S E" not in together and "T H A N K" not in together


def test_the_words_are_a_function_of_the_seed():
    effects = parse_chain("hesitant:0.3+telephone")
    assert words_of(TEXT, effects, 5) == words_of(TEXT, effects, 5) != words_of(TEXT, effects, 6)
    assert words_of(TEXT, parse_chain("telephone"), 5) == TEXT
