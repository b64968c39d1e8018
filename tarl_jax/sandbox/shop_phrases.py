"""The sentences of the embedded shop."""

from __future__ import annotations

import re

from tarl_jax.sandbox.phrases import SYSTEM, USER_DROP, Phrases

ASIDES = {
    "item": "I keep the {item} of it.",
    "product": "It is not about the {item} of {order}, that one is fine.",
    "order": "My order {order} can stay as it is.",
}

PHRASES = Phrases(
    system=SYSTEM,
    requests={
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
    },
    reasons={
        "no longer needed": ("I do not need it any more", "it is no longer needed"),
        "ordered by mistake": ("I ordered it by mistake", "the order was a mistake"),
        "found it cheaper": ("I found it cheaper", "it costs less elsewhere"),
        "takes too long": ("it takes too long", "I am tired of waiting"),
    },
    changes={
        "drop": USER_DROP,
        "option": ("Wait, I would rather have {option}.", "Hm, no: {option} is better."),
        "item": ("No, wait, the {item} instead.", "Sorry, I meant the {item}."),
    },
    identity={
        "email": ("My email is {email}.", "{email}", "Sure, {email}."),
        "name": ("I am {first} {last}, zip {zip}.", "{first} {last}, {zip}."),
    },
    lost={
        "name": ("I forgot my email. I am {first} {last}, zip {zip}.",),
        "email": ("Use my email, {email}.",),
    },
    ask=(
        "May I have your email?",
        "Your email, please?",
        "What is your name and zip code?",
    ),
    proposals={
        "cancel": "Cancel {order}, reason: {reason}? (yes/no)",
        "return": "Return the {item} of {order}? (yes/no)",
        "exchange": "Exchange the {item} of {order} for {option}? (yes/no)",
        "modify": "Change the {item} of {order} to {option}? (yes/no)",
        "payment": "Pay {order} with {method_id}? (yes/no)",
    },
    refusals={
        "status": "Sorry, I cannot do that: the order is {status}. Anything else?",
        "reason": "Sorry, I cannot do that: the reason is not accepted. Anything else?",
        "unavailable": "Sorry, I cannot do that: {option} is not available. Anything else?",
        "balance": "Sorry, I cannot do that: the balance is too low. Anything else?",
    },
    answers={
        "ask_status": "Order {order} is {answer}. Anything else?",
        "ask_total": "Order {order} cost {answer}. Anything else?",
    },
    asks={"email": "email", "name": "zip"},
    proposal_marks={
        "cancel": re.compile(r"\bcancel\b", re.I),
        "return": re.compile(r"\breturn\b", re.I),
        "exchange": re.compile(r"\bexchange\b", re.I),
        "modify": re.compile(r"\b(change|modify)\b", re.I),
        "payment": re.compile(r"\bpay\b", re.I),
    },
    ground_marks={
        "status": re.compile(r"\border is (pending|processed|delivered|cancelled)\b", re.I),
        "reason": re.compile(r"\breason\b", re.I),
        "unavailable": re.compile(r"\bavailable\b", re.I),
        "balance": re.compile(r"\bbalance\b", re.I),
    },
    answer_mark=re.compile(r"\border #\w+ (is|cost)\b"),
)
