"""The sentences of the embedded airline."""

from __future__ import annotations

import re

from tarl_jax.sandbox.phrases import USER_DROP, Phrases

PHRASES = Phrases(
    system="You are the clerk of an airline. Use the tools.",
    requests={
        "cancel": (
            "I want to cancel reservation {reservation}, {why}.",
            "Please cancel {reservation}, {why}.",
            "Cancel my reservation {reservation}: {why}.",
            "About {reservation}: {why}, so cancel it.",
        ),
        "bags": (
            "I want {option} in all on reservation {reservation}, paid with my {method}.",
            "Please make it {option} on {reservation}, on my {method}.",
            "For {reservation} I need {option} in all. My {method} pays.",
        ),
        "cabin": (
            "I want to fly {option} on reservation {reservation}, paid with my {method}.",
            "Please put {reservation} into {option}, on my {method}.",
            "Can all of {reservation} be in {option}? My {method} pays.",
        ),
        "flight": (
            "I want to move flight {flight} of reservation {reservation} to {option}, paid with my"
            " {method}.",
            "Please put {flight} of {reservation} on {option}, on my {method}.",
            "In {reservation}, can {flight} be on {option}? My {method} pays.",
        ),
        "passenger": (
            "I want to replace {old} on reservation {reservation} by {new}, born {dob}.",
            "{new}, born {dob}, flies instead of {old} on {reservation}.",
            "On {reservation}, put {new}, born {dob}, in place of {old}.",
        ),
        "add": (
            "I want to add {new}, born {dob}, to reservation {reservation}.",
            "{new}, born {dob}, comes along on {reservation}.",
            "Please put {new}, born {dob}, on {reservation} too.",
        ),
        "ask_total": (
            "How much was reservation {reservation}?",
            "What did I pay for {reservation}?",
            "Tell me the total of reservation {reservation}, please.",
        ),
        "ask_bags": (
            "How many bags has reservation {reservation}?",
            "With how many bags is {reservation} booked?",
        ),
    },
    reasons={
        "health": ("I am ill", "I broke a leg"),
        "weather": ("a storm is coming", "the weather is too bad"),
        "plans": ("I do not need it any more", "my plans are others now"),
        "price": ("I found it cheaper", "it costs less elsewhere"),
        "airline": ("you cancelled the flight", "the flight was cancelled by you"),
    },
    changes={
        "drop": USER_DROP,
        "option": ("Wait, I would rather have {option}.", "Hm, no: {option} is better."),
    },
    identity={"user_id": ("My user id is {user}.", "{user}", "Sure, {user}.")},
    lost={"user_id": ("I only know my user id, {user}.",)},
    ask=("May I have your user id?", "Your user id, please?"),
    proposals={
        "cancel": "Cancel {reservation}? (yes/no)",
        "bags": "Make it {option} on {reservation}, {nonfree} of them not free, with {payment}?"
                " (yes/no)",
        "cabin": "Change the cabin of {reservation} to {option} with {payment}? (yes/no)",
        "flight": "Move {flight} of {reservation} to {option} with {payment}? (yes/no)",
        "passenger": "Replace {old} on {reservation} by {new}, born {dob}? (yes/no)",
        "add": "Add {new}, born {dob}, to {reservation}? (yes/no)",
    },
    refusals={
        "insurance": "Sorry, I cannot do that: the trip is not insured. Anything else?",
        "reason": "Sorry, I cannot do that: the reason is not accepted. Anything else?",
        "fare": "Sorry, I cannot do that: the cabin is {cabin}. Anything else?",
        "unavailable": "Sorry, I cannot do that: {option} is not available. Anything else?",
        "fewer": "Sorry, I cannot do that: none of the {bags} bags can go. Anything else?",
        "number": "Sorry, I cannot do that: the number of passengers stays. Anything else?",
        "method": "Sorry, I cannot do that: a certificate does not pay for it. Anything else?",
    },
    answers={
        "ask_total": "Reservation {reservation} cost {answer}. Anything else?",
        "ask_bags": "Reservation {reservation} has {answer} bags. Anything else?",
    },
    asks={"user_id": "user id"},
    proposal_marks={
        "cancel": re.compile(r"\bcancel\b", re.I),
        "bags": re.compile(r"\bbags?\b", re.I),
        "cabin": re.compile(r"\bcabin\b", re.I),
        "flight": re.compile(r"\bmove\b", re.I),
        "passenger": re.compile(r"\breplace\b", re.I),
        "add": re.compile(r"\badd\b", re.I),
    },
    ground_marks={
        "insurance": re.compile(r"\binsured\b", re.I),
        "reason": re.compile(r"\breason\b", re.I),
        "fare": re.compile(r"\bcabin is\b", re.I),
        "unavailable": re.compile(r"\bavailable\b", re.I),
        "fewer": re.compile(r"\bbags can go\b", re.I),
        "number": re.compile(r"\bnumber\b", re.I),
        "method": re.compile(r"\bcertificate\b", re.I),
    },
    answer_mark=re.compile(r"\breservation \w+ (cost|has)\b"),
)
