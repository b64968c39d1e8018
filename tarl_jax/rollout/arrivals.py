"""Whether to wait a moment for those who are about to come, before a burst begins without them.

A burst costs the same for one row as for all, so who comes when it has just begun has to wait for
its end. Those who were answered a moment ago are likely to be back soon, with the next turn of
their conversation.
"""

from __future__ import annotations

_MOST = 1.0  # seconds; who takes longer to come back is not waited for
_LATE = 4  # times as long as they take to come back; who is not back by then has gone
_SMALL = 1 / 3  # of a burst


class Arrivals:
    """Who was answered and may come back, and after how long they do.

    Attributes:
      seconds: that they take to come back, about.
    """

    def __init__(self) -> None:
        self.seconds = 0.005
        self._away: dict[int, float] = {}  # when each was answered, the first one first

    def left(self, index: int, now: float) -> None:
        """The row was answered."""
        self._away.pop(index, None)
        self._away[index] = now

    def came(self, index: int, answered: float, now: float) -> None:
        """The row, whose last answer was at `answered`, goes on."""
        self._away.pop(index, None)
        took = min(now - answered, _LATE * self.seconds)  # one that was long away says little
        self.seconds = min(self.seconds + 0.1 * (took - self.seconds), _MOST)

    def patience(self, writing: int, burst: float, now: float) -> float:
        """Seconds to wait for the next one; 0: the burst had better begin.

        Where they come back in a small part of a burst, all of them are waited for, half a burst at
        most, and until the last of them is late. Else, with W rows that want to write, a gap of g
        seconds to the next arrival costs them W·g, and saves the one who comes a burst.

        writing: W; burst: seconds that one takes.
        """
        for index, answered in list(self._away.items()):
            if now - answered <= _LATE * self.seconds:
                break
            del self._away[index]
        if not self._away:
            return 0.0
        if self.seconds < _SMALL * burst:
            last = next(reversed(self._away.values()))
            return min(burst / 2, last + _LATE * self.seconds - now)
        gap = self.seconds / len(self._away)
        return 2 * gap if writing * gap < burst else 0.0
