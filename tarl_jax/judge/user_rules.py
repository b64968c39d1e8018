"""Was it the user's fault? What can be told by rule of a user that a language model plays.

A user errs where it says what its task does not (`CONTRADICTS`), recites its hidden text or tells
what it should keep for later (`LEAKS`), ends the dialogue while something it wants is neither done
nor refused (`EARLY_END`), or speaks the text of tools (`TOOL_TEXT`). Told from the task's hidden
text, its gold calls and, where there is one, the script of a scripted user of the same task.

What is in doubt is no fault here: a user that believes a false "done", or gives up on an agent that
goes in circles, is not to blame.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from tarl_jax.sandbox import phrases
from tarl_jax.sandbox.desk import Desk, Wish
from tarl_jax.sandbox.desks import desk_of
from tarl_jax.sandbox.dialogue import AGREES, DECLINES, TRANSFER
from tarl_jax.sandbox.script import Script
from tarl_jax.types import Call, Segment, Trajectory

CONTRADICTS, LEAKS, EARLY_END, TOOL_TEXT = "contradicts", "leaks", "early_end", "tool_text"
Kind = Literal["contradicts", "leaks", "early_end", "tool_text"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_TOOL_TEXT = re.compile(
    r"</?(?:tool_call|tool_response|function_call|tools?)s?\b|<\|im_|[{\[]\s*\"[^\"\n]+\"\s*:"
    r"|\b[a-z]+(?:_[a-z]+)+ ?\(|^\s*(?:tool|function)(?: (?:response|result|call|output))?:",
    re.I | re.M,
)
_OUT_OF_ROLE = re.compile(
    r"\b(?:hidden (?:instructions?|text|task)|my (?:hidden )?instructions|system prompt"
    r"|as an ai|i am (?:playing|simulating)|the scenario says)\b", re.I
)
_DROPS = re.compile(
    r"\b(?:never ?mind|forget (?:it|about|everything|the)|changed? my mind|on second thought"
    r"|(?:do not|don't|no longer) (?:want|need) (?:it|that|this|anything|to)|leave it"
    r"|keep it as)\b", re.I
)
_MAY_DROP = re.compile(
    r"chang\w* (?:your|his|her|their) mind|no longer|never ?mind|(?:do not|don't) (?:want|need)"
    r"|\bdrop|\bif\b|\bunless\b|otherwise|instead|forget", re.I
)
_DONE = re.compile(
    r"\bdone\b|complet|success|\b(?:has|have) been\b|\b(?:is|are) now\b|process|updated|cancell?ed"
    r"|confirmed|refund|booked|changed", re.I
)
_CLOSES = re.compile(
    r"(?:any|some)thing (?:else|more)|else (?:i|we) (?:can|may)|further (?:help|assist)"
    r"|other request|is that all|have a (?:nice|great|good|wonderful|lovely)|good ?bye", re.I
)
_REFUSES = re.compile(
    r"\b(?:cannot|can ?not|can't|could not|couldn't|unable|not able|won't|not (?:possible|allowed"
    r"|permitted|eligible|available)|sorry|unfortunately|denied|policy|leave it"
    r"|transferr?(?:ed|ing)?)\b",
    re.I,
)
_NAMED = re.compile(r"\b(?i:my name is|i am|i'm|this is) ([A-Z][a-z]+ [A-Z][a-z]+)\b")
_VALUE = re.compile(r"[#\w][\w@#.+-]*")
_DATE = re.compile(r"\d{1,4}(?:[-/.:]\d{1,4}){1,2}(?:am|pm)?")
_RUN, _LONG_RUN = 6, 25  # words of hidden text in a row: with "you" among them, and any
_PATIENCE = 8  # messages after which a user may give up


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault of the user: its kind, the agent's turn that it answers, and what is wrong."""

    kind: str
    turn: int
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclasses.dataclass(frozen=True)
class _Message:
    """A message of the user: what it answers, and what it had heard by then."""

    turn: int
    text: str
    before: str
    heard: str
    stops: bool


def decidable(trajectory: Trajectory, script: Mapping[str, Any] | None) -> bool:
    """Whether what the user wants is known well enough for rules."""
    task = trajectory.task
    return bool(script or task.gold_calls or task.checks)


def faults(trajectory: Trajectory, script: Mapping[str, Any] | None = None) -> list[Fault]:
    """The faults of an episode's user, in the order of its messages.

    script: of the task, where it has one that the user was not shown (`Task.script`).
    """
    task = trajectory.task
    script = script or task.script
    read = Script.from_json(script) if script and "requests" in script else None
    hidden = _squashed(" ".join((task.instruction, *task.outputs)))
    messages = list(_messages(trajectory.segments))
    tools = {c.name for c in task.gold_calls} | {c.name for s in trajectory.turns for c in s.calls}
    found: list[Fault] = []
    for message in messages:
        found += _said(message, task.instruction, hidden, tools, read is not None)
        if read is not None:
            found += _against_script(message, read)
    if not decidable(trajectory, script) or trajectory.success:
        return found
    undone = _undone(trajectory)
    found += _declined(messages, undone)
    may_drop = _MAY_DROP.search(task.instruction) 
    for message in messages:
        if undone and not may_drop and _DROPS.search(message.text):
            found.append(Fault(CONTRADICTS, message.turn, "drops what its task asks for"))
    return [*found, *_ends_early(trajectory, messages, undone)]


def _messages(segments: list[Segment]) -> Iterator[_Message]:
    before, heard = "", ""
    for segment in segments:
        told = segment.text if segment.role == "greeting" else segment.message
        if told and segment.role in ("greeting", "agent"):
            before = told
            heard += f" {before}"
        elif segment.role == "user":
            heard += "".join(f" {c.get('output', '')}" for c in segment.info.get("user_calls", ()))
            text = segment.text
            stops = any(word in text for word in phrases.STOPS)
            for word in phrases.STOPS:
                text = text.replace(word, "")
            yield _Message(segment.turn, text.strip(), before, heard, stops)


def _said(
    message: _Message, instruction: str, hidden: str, tools: set[str], scripted: bool
) -> Iterator[Fault]:
    """What is wrong with a message's words, whatever the agent does."""
    text = message.text
    if is_tool_text(text) or any(re.search(rf"\b{re.escape(t)}\b", text) for t in tools
                                 if "_" in t):
        yield Fault(TOOL_TEXT, message.turn, f"speaks as a tool: {text[:80]!r}")
        return
    if is_leak(text, instruction):
        yield Fault(LEAKS, message.turn, f"recites its hidden text: {text[:80]!r}")
        return
    known = hidden + _squashed(message.heard)
    for value in _values(text, 3 if scripted else 5):
        if _squashed(value) not in known:
            yield Fault(CONTRADICTS, message.turn, f"{value!r} is not in its task")
    for name in _NAMED.findall(text):
        if _squashed(name) not in known:
            yield Fault(CONTRADICTS, message.turn, f"is not {name!r}")


def is_tool_text(text: str) -> bool:
    """Whether it is written as a call or an answer of a tool."""
    return bool(_TOOL_TEXT.search(text))


def is_leak(text: str, instruction: str) -> bool:
    """Whether it recites the hidden text, or speaks of having one."""
    return bool(_OUT_OF_ROLE.search(text)) or _recites(text, instruction)


def _recites(text: str, instruction: str) -> bool:
    said = " " + " ".join(_words(text)) + " "
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", instruction):
        words = _words(sentence)
        if len(words) < _RUN:
            # A whole short sentence that speaks of "you", such as "You are very polite."
            if len(words) > 2 and words[0] == "you" and f" {' '.join(words)} " in said:
                return True
            continue
        for i in range(len(words) - _RUN + 1):
            run = words[i : i + _RUN]
            if {"you", "your"} & set(run) and f" {' '.join(run)} " in said:
                return True
    whole = _words(instruction)
    return any(f" {' '.join(whole[i : i + _LONG_RUN])} " in said
               for i in range(len(whole) - _LONG_RUN + 1))


def _against_script(message: _Message, script: Script) -> Iterator[Fault]:
    """Where it answers a proposal otherwise than its script does, or says something else of it."""
    desk = desk_of(script.desk)
    text, wishes = message.text, script.requests
    agrees = bool(AGREES.search(text)) and not DECLINES.search(text)
    declines = bool(DECLINES.search(text)) or bool(_DROPS.search(text))
    intent = desk.phrases.read_intent(message.before)
    if intent.kind == "propose" and not message.stops | (not agrees and not declines):
        yield from _answered(message, intent.proposal, agrees, desk, wishes)
    yield from _told(message, desk, wishes)


def _answered(
    message: _Message, proposal: str, agrees: bool, desk: Desk[Any], wishes: tuple[Wish, ...]
) -> Iterator[Fault]:
    def fits(wish: Wish | None) -> bool:
        return (wish is not None and wish.kind == proposal
                and desk.matches(message.before, wish))

    first = [w for w in wishes if fits(w)]
    final = [w for w in wishes if fits(w.final)]
    if agrees and not first and not final:
        yield Fault(CONTRADICTS, message.turn, "agrees to what it does not want")
    elif agrees and first and not final:
        yield Fault(CONTRADICTS, message.turn, "does not change its mind")
    elif not agrees and final and not any(w.change for w in first):
        yield Fault(CONTRADICTS, message.turn, "declines what it wants")


def _told(message: _Message, desk: Desk[Any], wishes: tuple[Wish, ...]) -> Iterator[Fault]:
    text, lower = message.text, message.text.lower()
    about = [w for w in wishes if w.record_id and w.record_id.lower() in lower]
    kinds = {kind for w in about for kind in (w.kind, w.then.kind if w.then else w.kind)}
    reasons = {w.reason for w in wishes} | {w.then.reason for w in wishes if w.then}
    marks = desk.phrases.proposal_marks
    # "Change" may stand for anything.
    named = {kind for kind, mark in marks.items() if mark.search(text)} - {"modify"}
    aside = any(w.aside and w.aside.lower() in lower for w in wishes)
    if about and named and not aside and kinds <= set(marks) and not named & kinds:
        yield Fault(CONTRADICTS, message.turn, f"asks for {', '.join(sorted(named))} there")
    for reason, said in desk.phrases.reasons.items():
        if reason not in reasons and any(words.lower() in lower for words in said):
            yield Fault(CONTRADICTS, message.turn, f"{reason!r} is not its reason")
    if desk.phrases.read_intent(message.before).kind == "propose":
        return
    for wish in wishes:
        if wish.change and wish.then and message.turn < 1:
            old, new = desk.words(wish), desk.words(wish.then)
            others = " ".join(str(desk.words(w)) for w in wishes) + f" {old}"
            later = [str(v) for k, v in new.items() if len(str(v)) > 3 and str(v) not in others]
            if later and all(v.lower() in lower for v in later):
                yield Fault(LEAKS, message.turn, "tells its change of mind unasked")


def _undone(trajectory: Trajectory) -> list[Call]:
    """The gold calls that the episode's end does not show done; none where checks say what is."""
    done: list[int] = []
    if trajectory.task.checks:
        return []
    for segment in trajectory.segments:
        done = segment.info.get("fulfilled", done)
    return [c for i, c in enumerate(trajectory.task.gold_calls) if i not in done]


def _declined(messages: list[_Message], undone: list[Call]) -> Iterator[Fault]:
    """A no to a question that names all that a gold call holds, and no yes to it later."""
    for call in undone:
        values = {_squashed(v) for v in _values(_text_of(call.kwargs), 4)}
        asked = [m for m in messages if len(values) > 1 and "?" in m.before
                 and all(v in _squashed(m.before) for v in values)]
        if asked and all(DECLINES.search(m.text) for m in asked):
            yield Fault(CONTRADICTS, asked[-1].turn, f"declines what it wants: {call.name}")


def _ends_early(
    trajectory: Trajectory, messages: list[_Message], undone: list[Call]
) -> Iterator[Fault]:
    task = trajectory.task
    transferred = any(c.name == TRANSFER for s in trajectory.turns for c in s.calls)
    last = next((m for m in messages if m.stops), None)
    if last is None or trajectory.stop_reason != "user_stop" or transferred:
        return
    hidden, said = _squashed(task.instruction), _squashed(" ".join(m.text for m in messages))
    for call in undone:
        kwargs = {k: v for k, v in call.kwargs.items() if k != "user_id"}
        values = [v for v in map(_squashed, _values(_text_of(kwargs), 4)) if v in hidden]
        if values and not any(v in said for v in values):
            yield Fault(EARLY_END, last.turn, f"ends without having asked for it all: {call.name}")
            return
    if not undone and not task.checks:
        return
    told = [m.before for m in messages]
    if told.count(last.before) > 1 or len(messages) > _PATIENCE or _REFUSES.search(last.before):
        return
    asks = "?" in last.before and not _CLOSES.search(last.before)
    claims = _DONE.search(last.before) or _CLOSES.search(last.before)
    if asks and not last.text.startswith(last.before):
        yield Fault(EARLY_END, last.turn, f"ends where it is asked: {last.before[-80:]!r}")
    elif not asks and not claims:
        yield Fault(EARLY_END, last.turn, f"ends before anything is done: {last.before[-80:]!r}")


def _values(text: str, digits: int) -> list[str]:
    """The words of a text that name something: ids, addresses, numbers with so many digits."""
    found = []
    for place in _VALUE.finditer(text):
        word = place[0].strip(".-+")
        count = sum(c.isdigit() for c in word)
        money = text[: place.start()].endswith("$")
        if "@" in word or (count and ("#" in word or "_" in word)) or (
            count >= digits and not money and not _DATE.fullmatch(word)
        ):
            found.append(word)
    return found


def _text_of(value: Any) -> str:
    """All that an argument holds, as words."""
    if isinstance(value, Mapping):
        return " ".join(_text_of(item) for item in value.values())
    if isinstance(value, list | tuple):
        return " ".join(map(_text_of, value))
    return str(value)


def _squashed(text: str) -> str:
    return re.sub(r"[^a-z0-9@#_]", "", text.lower())


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9#@_']+", text.lower())
