"""What is written and what is said of it."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarl_jax.sandbox import phrases
from tarl_jax.speech.speakable import speakable


@pytest.mark.parametrize("written, said", [
    ("Please cancel #W123, it is a mistake.",
     "Please cancel hash W one two three, it is a mistake."),
    ("ada.adler@mail.com", "ada dot adler at mail dot com"),
    ("My email is james.li4495@example.com.",
     "My email is james dot li four four nine five at example dot com."),
    ("mei_k-2+shop@my-mail.co.uk",
     "mei underscore k dash two plus shop at my dash mail dot co dot uk"),
    ("It cost $1,234.50!", "It cost 1,234 dollars and 50 cents!"),
    ("$1 or $0.05 or $12345 or $0", "1 dollar or 5 cents or 12,345 dollars or 0 dollars"),
    ("$1.01", "1 dollar and 1 cent"),
    ("I am Ada Adler, zip 801.", "I am Ada Adler, zip eight zero one."),
    ("zip 07102", "zip zero seven one zero two"),
    ("item 9624127908", "item nine six two four one two seven nine zero eight"),
    ("credit_card_4190576",
     "credit underscore card underscore four one nine zero five seven six"),
    ("omar_anderson_32", "omar underscore anderson underscore three two"),
    ("flight HAT136, booking 4WQ150, from JFK",
     "flight H A T one three six, booking four W Q one five zero, from JFK"),
    ("555-123-4567", "five five five, one two three, four five six seven"),
    ("I ordered 2 mugs and 12 plates at 3:30.", "I ordered 2 mugs and 12 plates at 3:30."),
    ("$5.5 and $54.50", "5 dollars and 50 cents and 54 dollars and 50 cents"),
    ("$1.2 million, $5k, $120 K", "1.2 million dollars, 5 thousand dollars, 120 thousand dollars"),
    ("$3.999 and $3.990", "3.999 dollars and 3 dollars and 99 cents"),
    ("$-25.00 or -$25", "minus 25 dollars or minus 25 dollars"),
    ("from 10:00-12:00", "from 10:00 to 12:00"), ("9:05 am - 10:30 pm", "9:05 am to 10:30 pm"),
    ("16GB or 500GB", "16 GB or 500 GB"), ("00_", "zero zero"),
    ("3.14 and 1,234", "3.14 and 1,234"),
    ("50% off & free", "50 percent off and free"),
    ("100%", "100 percent"),
    ("one\ntwo\tthree\x00four", "one two three four"),
    ("That is all. ###STOP###", "That is all."),
    ("###STOP###", ""),
    ("###OUT-OF-SCOPE### ###TRANSFER###", ""),
    ("Is it the T-shirt?", "Is it the T-shirt?"),
    ("", ""),
])
def test_what_is_said(written, said):
    assert speakable(written) == said


def test_the_end_of_a_conversation_is_never_spoken():
    said = speakable(f"Bye. {phrases.STOP} #W1 {phrases.STOP}")
    assert "STOP" not in said and "###" not in said


WRITTEN = st.lists(st.one_of(
    st.sampled_from(["#W123", "$5.20", "$1,234", "a.b1@c.com", "x_y_12", "HAT12", "100%", "007",
                     "1,000", "###STOP###", "&", "@", "#", "_", "5-6", "dollars", "12.50",
                     "$5.5", "$1.2 million", "10:00-12:00", "$-25.00", "16GB", "-$3k"]),
    st.text(string.ascii_letters + string.digits + " .,-_#@$%+:'", max_size=8),
), max_size=6).map(" ".join)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(WRITTEN)
def test_what_is_speakable_stays_as_it_is(text):
    said = speakable(text)
    assert speakable(said) == said
