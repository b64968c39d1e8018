"""A call by telephone, and a clock for it."""

from tarl_jax.models.audio_inputs import tokens_of
from tarl_jax.rollout.workers import Answer
from tarl_jax.speech.sound import Sound


class Call:
    """A dialogue of any turns: its user writes first, then says clip by clip, and hangs up."""

    seed, outside, shared = 7, True, 0

    def __init__(self, env, say=None, clips=()):
        self.chat, self.system = env.chat, env.system[1]
        self.say, self.left = say, list(clips)
        self.turns = []

    def start(self):
        return [*self.system, *self.chat.user("Hello."), *self.chat.begin]

    def turn(self, turn):
        self.turns.append(turn)
        if not self.left:
            return None
        clip = self.left.pop(0)
        if self.say:
            self.say(clip)
        before = [] if turn.ids[-1] == self.chat.stop_id else [self.chat.stop_id]
        ids, place = self.chat.spoken(tokens_of(len(clip)))
        sound = Sound(len(before) + place, tokens_of(len(clip)), clip)
        return Answer([*before, *ids, *self.chat.begin], sounds=(sound,))

    def cut(self):
        raise AssertionError("nobody ends it")


class Clock:
    """Time passes where somebody sleeps, and `work` seconds each time that it is asked for."""

    def __init__(self, work=0.0):
        self.now, self.work = 100.0, work

    def __call__(self):
        self.now += self.work
        return self.now

    def sleep(self, seconds):
        self.now += seconds
