"""A server whose model plays users as their scripts do, and at 30% of episodes errs on purpose.

It runs in a thread of the test. It knows the tasks; what a user has said and heard before is played
again on the task's script, so that it keeps no state. An episode's opening tells by its last words
which fault it has, and when.
"""

import collections
import contextlib
import random
import threading
import zlib

import openai_server

from tarl_jax.sandbox import phrases
from tarl_jax.sandbox.user import ScriptedUser

FAULTS = ("stops", "stops_politely", "other_order", "other_reason", "drops", "declines", "recites",
          "tool_text", "record")
# What the check of users should call it.
KIND = {"stops": "early_end", "stops_politely": "early_end", "recites": "leaks",
        "tool_text": "tool_text", "record": "tool_text"}
_NAMES = [f"{a}{b}{c}" for a in ("Mo", "Bel", "Tri", "Ka") for b in ("na", "ri", "lo", "se")
          for c in ("", "n", "s", "x", "ra", "li")]
TAIL = " My cat is called {}."


class Users:
    """tasks: with their scripts. share: of episodes that go wrong, in one of the ways `faults`.

    made: by an episode's opening, the fault that it has.
    """

    def __init__(self, tasks, share=0.3, faults=FAULTS):
        self.tasks = {task.instruction: task for task in tasks}
        self.share = share
        self.faults = faults
        self.made = {}
        self.played = collections.Counter()
        self.lock = threading.Lock()

    def fault(self, opening):
        """(the fault of the episode that begins so, or None; the message at which it is made)."""
        rng = random.Random(opening)
        at = rng.choice((1, 1, 2))
        return (rng.choice(self.faults) if rng.random() < self.share else None), at

    def answer(self, messages, number):
        told = messages[0]["content"]
        task = next(t for i, t in self.tasks.items() if f"\n\n{i}\n\n" in told)
        user = ScriptedUser(task, 0)
        opening = user.opening()
        if len(messages) == 2:
            with self.lock:
                self.played[task.task_id] += 1
                number = self.played[task.task_id] + zlib.crc32(task.task_id.encode())
            number %= len(_NAMES) ** 2
            name = _NAMES[number % len(_NAMES)] + _NAMES[number // len(_NAMES)].lower()
            return opening + TAIL.format(name)
        said = [m["content"] for m in messages if m["role"] == "assistant"]
        heard = [m["content"] for m in messages if m["role"] == "user"][1:]
        for message in heard[:-1]:
            user.reply(message)
        right = user.reply(heard[-1])
        fault, at = self.fault(said[0])
        if fault and len(said) >= at and (text := self.wrong(fault, task, right)):
            with self.lock:
                self.made[said[0]] = fault
            return text
        return right.text

    def wrong(self, fault, task, right):
        """The faulty message; None where this fault cannot be made here."""
        if right.stop:
            return None
        match fault:
            case "stops":
                return phrases.STOP
            case "stops_politely":
                return f"Thank you, bye. {phrases.STOP}"
            case "other_order":
                return "It is about order #W99, please cancel that one."
            case "other_reason":
                reasons = {r["reason"] for r in task.script["requests"]}
                wanted = "ordered by mistake" not in reasons and "no longer needed" in reasons
                return "I ordered it by mistake." if wanted else None
            case "drops":
                changes = any(r["change"] for r in task.script["requests"])
                return None if changes or not task.gold_calls else "Never mind, forget about it."
            case "declines":
                return "No, I do not want that." if right.info["event"] == "confirmed" else None
            case "recites":
                return f"I was told this: {task.instruction}"
            case "tool_text":
                return '<tool_call>\n{"name": "get_user_details", "arguments": {}}\n</tool_call>'
            case "record":
                return 'Result: {"order_id": "#W1", "status": "pending"}'


@contextlib.contextmanager
def serving(users):
    """The base_url of a server that plays them as the model "erring"."""
    server = openai_server.Server()
    openai_server.ANSWERS["erring"] = users.answer
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        del openai_server.ANSWERS["erring"]
