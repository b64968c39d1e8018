"""The sentences that all desks share, and what an agent's message means to a scripted user.

`{…}` slots hold values that come from the database; the tokenizer's training text marks them, so
that a value is the same pieces wherever it stands.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

SYSTEM = "You are the clerk of a shop. Use the tools."

USER_GREETINGS = ("Hi. ", "Hello! ", "", "Good day. ")
USER_CHATTER = (
    " It rained all day here.",
    " My neighbour told me about you.",
    " I am in a hurry.",
    " The weather is lovely.",
)
USER_YES = ("Yes.", "Yes, please.", "Go ahead.", "Right, do it.")
USER_DROP = ("No, leave it.", "On second thought, forget it.", "Hm, no. Keep it as it is.")
USER_CORRECT = ("No. ", "That is not what I said. ")
USER_NEXT = ("One more thing. ", "Also: ", "Next, ", "")
USER_REPEAT = ("Sorry? ", "As I said: ")
USER_BYE = ("That is all.", "No, thank you.", "Bye.")
STOP = "###STOP###"
STOPS = (STOP, "###TRANSFER###", "###OUT-OF-SCOPE###")  # τ²-bench's users say the others too

AGENT_DONE = ("Done. Anything else?", "That is done. Anything else?")
AGENT_LEAVE = ("I leave it as it is. Anything else?",)
AGENT_TRANSFER = "the user needs help"


@dataclasses.dataclass(frozen=True)
class Persona:
    """A manner of speaking.

    words: the sentence of the hidden instruction that asks for it; leads, tails: what a scripted
    user of this manner says before and after a request.
    """

    words: str
    leads: tuple[str, ...]
    tails: tuple[str, ...]


PERSONAS = {
    "terse": Persona("You say as little as you can.", ("",), ("", " Quick.")),
    "polite": Persona(
        "You are very polite.",
        ("I hope you can help me. ", "Sorry to trouble you. "), (" Many thanks.", " Thank you."),
    ),
    "impatient": Persona(
        "You are impatient.",
        ("I have waited long enough. ", "I do not have all day. "), (" Now, please.", ""),
    ),
    "chatty": Persona(
        "You like to talk about yourself.",
        ("My sister told me to call. ", "I am just back from a long walk. "),
        (" You know how it is.", " My cat is asleep on the parcel."),
    ),
    "unsure": Persona(
        "You are unsure of yourself.",
        ("I am not sure that I am right here. ", "Let me see. "), (" I think.", " If I may."),
    ),
}


@dataclasses.dataclass(frozen=True)
class Intent:
    """What an agent's message does.

    kind: "propose", "deny", "done", "leave", "answer", "other", or "ask_" and what it asks the user
      to identify itself by, e.g. "ask_email".
    proposal: for "propose", the action's kind; empty if it names none.
    """

    kind: str
    proposal: str = ""


@dataclasses.dataclass(frozen=True)
class Phrases:
    """What is said at one desk, and how the agent's part of it is read.

    Attributes:
      system: the system turn of a policy that is shown no policy text.
      requests: what a user may say of a request of each kind.
      reasons: how it says why.
      changes: what it says when it changes its mind, by `Wish.change`.
      identity: how it says who it is, by what it remembers.
      lost: what it says when it is asked for something else than that which it remembers.
      ask: how the clerk asks who the user is.
      proposals, refusals, answers: the clerk's, by kind of request, ground and kind of question.
      asks: the word by which a question asks for what the user remembers.
      proposal_marks, ground_marks: the words by which a message is one of those.
      answer_mark: the words that answer a question.
    """

    system: str
    requests: Mapping[str, tuple[str, ...]]
    reasons: Mapping[str, tuple[str, ...]]
    changes: Mapping[str, tuple[str, ...]]
    identity: Mapping[str, tuple[str, ...]]
    lost: Mapping[str, tuple[str, ...]]
    ask: tuple[str, ...]
    proposals: Mapping[str, str]
    refusals: Mapping[str, str]
    answers: Mapping[str, str]
    asks: Mapping[str, str]
    proposal_marks: Mapping[str, re.Pattern[str]]
    ground_marks: Mapping[str, re.Pattern[str]]
    answer_mark: re.Pattern[str]

    def read_intent(self, message: str) -> Intent:
        """What `message` asks of or tells the user. Anything unclear is "other"."""
        lower = message.lower()
        if "(yes/no)" in lower:
            kinds = [kind for kind, mark in self.proposal_marks.items() if mark.search(message)]
            return Intent("propose", kinds[0] if len(kinds) == 1 else "")
        if re.search(r"\b(cannot|can't|unable)\b", lower):
            return Intent("deny")
        if re.search(r"\bleave it\b", lower):
            return Intent("leave")
        if re.search(r"\bdone\b", lower):
            return Intent("done")
        for remembered, word in self.asks.items():
            if "?" in lower and word in lower:
                return Intent(f"ask_{remembered}")
        if self.answer_mark.search(lower):
            return Intent("answer")
        return Intent("other")

    def refusal_ground(self, message: str) -> str:
        """On which ground (a key of `refusals`) a refusal rests; empty if none, or several."""
        found = [ground for ground, mark in self.ground_marks.items() if mark.search(message)]
        return found[0] if len(found) == 1 else ""
