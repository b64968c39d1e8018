"""The sentences of the embedded shop, and what an agent's message means to a scripted user.

`{…}` slots hold values that come from the database; the tokenizer's training text marks them, so
that a value is the same pieces wherever it stands.
"""

from __future__ import annotations

import dataclasses
import re

SYSTEM = "You are the clerk of a shop. Use the tools."

REASON_WORDS = {
    "no longer needed": ("I do not need it any more", "it is no longer needed"),
    "ordered by mistake": ("I ordered it by mistake", "the order was a mistake"),
    "found it cheaper": ("I found it cheaper", "it costs less elsewhere"),
    "takes too long": ("it takes too long", "I am tired of waiting"),
}

USER_REQUESTS = {
    "cancel": (
        "I want to cancel order {order}, {why}.",
        "Please cancel {order}, {why}.",
        "Cancel my order {order}: {why}.",
        "About {order}: {why}, so cancel it.",
    ),
    "return": (
        "I want to return the {item} of order {order}.",
        "The {item} from {order} should go back.",
        "Please take back the {item} of {order}.",
        "Can I send back the {item} from order {order}?",
    ),
    "exchange": (
        "I want to exchange the {item} of order {order} for {option}.",
        "Can you swap the {item} from {order} for {option}?",
        "The {item} of {order} arrived, but I would like {option} instead.",
        "Exchange the {item} in {order}, I prefer {option}.",
    ),
    "modify": (
        "Before it ships, change the {item} of order {order} to {option}.",
        "In {order}, make the {item} {option} before you send it.",
        "My order {order} is on hold: change its {item} to {option}.",
        "Please modify {order}: the {item} should be {option}.",
    ),
    "payment": (
        "I want to pay order {order} with my {method}.",
        "Change the payment of {order} to my {method}.",
        "Please charge {order} to my {method} instead.",
        "Can {order} go on my {method}?",
    ),
    "ask_status": (
        "What is the status of order {order}?",
        "How far is my order {order}?",
        "Has {order} been sent yet?",
    ),
    "ask_total": (
        "How much was order {order}?",
        "What did I pay for {order}?",
        "Tell me the total of order {order}, please.",
    ),
}
USER_GREETINGS = ("Hi. ", "Hello! ", "", "Good day. ")
USER_CHATTER = (
    " It rained all day here.",
    " My neighbour told me about you.",
    " I am in a hurry.",
    " The weather is lovely.",
)
USER_ASIDES = {
    "item": "I keep the {item} of it.",
    "product": "It is not about the {item} of {order}, that one is fine.",
    "order": "My order {order} can stay as it is.",
}
USER_EMAIL = ("My email is {email}.", "{email}", "Sure, {email}.")
USER_NAME = ("I am {first} {last}, zip {zip}.", "{first} {last}, {zip}.")
USER_NO_EMAIL = ("I forgot my email. I am {first} {last}, zip {zip}.",)
USER_NO_NAME = ("Use my email, {email}.",)
USER_YES = ("Yes.", "Yes, please.", "Go ahead.", "Right, do it.")
USER_DROP = ("No, leave it.", "On second thought, forget it.", "Hm, no. Keep it as it is.")
USER_OPTION = ("Wait, I would rather have {option}.", "Hm, no: {option} is better.")
USER_ITEM = ("No, wait, the {item} instead.", "Sorry, I meant the {item}.")
USER_CORRECT = ("No. ", "That is not what I said. ")
USER_NEXT = ("One more thing. ", "Also: ", "Next, ", "")
USER_REPEAT = ("Sorry? ", "As I said: ")
USER_BYE = ("That is all.", "No, thank you.", "Bye.")
STOP = "###STOP###"

AGENT_ASK = (
    "May I have your email?",
    "Your email, please?",
    "What is your name and zip code?",
)
AGENT_PROPOSALS = {
    "cancel": "Cancel {order}, reason: {reason}? (yes/no)",
    "return": "Return the {item} of {order}? (yes/no)",
    "exchange": "Exchange the {item} of {order} for {option}? (yes/no)",
    "modify": "Change the {item} of {order} to {option}? (yes/no)",
    "payment": "Pay {order} with {method_id}? (yes/no)",
}
AGENT_DENIALS = {
    "status": "Sorry, I cannot do that: the order is {status}. Anything else?",
    "reason": "Sorry, I cannot do that: the reason is not accepted. Anything else?",
    "unavailable": "Sorry, I cannot do that: {option} is not available. Anything else?",
    "balance": "Sorry, I cannot do that: the balance is too low. Anything else?",
}
AGENT_ANSWERS = {
    "ask_status": "Order {order} is {answer}. Anything else?",
    "ask_total": "Order {order} cost {answer}. Anything else?",
}
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

    kind: "ask_email", "ask_name", "propose", "deny", "done", "leave", "answer" or "other".
    proposal: for "propose", the action's kind; empty if it names none.
    """

    kind: str
    proposal: str = ""


_PROPOSALS = {
    "cancel": re.compile(r"\bcancel\b", re.I),
    "return": re.compile(r"\breturn\b", re.I),
    "exchange": re.compile(r"\bexchange\b", re.I),
    "modify": re.compile(r"\b(change|modify)\b", re.I),
    "payment": re.compile(r"\bpay\b", re.I),
}


def read_intent(message: str) -> Intent:
    """What `message` asks of or tells the user. Anything unclear is "other"."""
    lower = message.lower()
    if "(yes/no)" in lower:
        kinds = [kind for kind, pattern in _PROPOSALS.items() if pattern.search(message)]
        return Intent("propose", kinds[0] if len(kinds) == 1 else "")
    if re.search(r"\b(cannot|can't|unable)\b", lower):
        return Intent("deny")
    if re.search(r"\bleave it\b", lower):
        return Intent("leave")
    if re.search(r"\bdone\b", lower):
        return Intent("done")
    if "?" in lower and "email" in lower:
        return Intent("ask_email")
    if "?" in lower and "zip" in lower:
        return Intent("ask_name")
    if re.search(r"\border #\w+ (is|cost)\b", lower):
        return Intent("answer")
    return Intent("other")


_GROUNDS = {
    "status": re.compile(r"\border is (pending|processed|delivered|cancelled)\b", re.I),
    "reason": re.compile(r"\breason\b", re.I),
    "unavailable": re.compile(r"\bavailable\b", re.I),
    "balance": re.compile(r"\bbalance\b", re.I),
}


def refusal_ground(message: str) -> str:
    """On which ground (one of script.DENIALS) a refusal rests; empty if none, or several."""
    found = [ground for ground, pattern in _GROUNDS.items() if pattern.search(message)]
    return found[0] if len(found) == 1 else ""
