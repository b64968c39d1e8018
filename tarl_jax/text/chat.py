"""Chat layout in Qwen's form, append-only: every part is rendered once and never again.

The sequence is

    <|im_start|>system … <|im_end|> then, per exchange,
    \\n<|im_start|>user … <|im_end|>\\n<|im_start|>assistant\\n   (forced)
    … <|im_end|>                                               (sampled)

with tool results as user turns inside `<tool_response>`. With a checkpoint's own tokenizer the ids
are those of its template, token for token. The template drops the reasoning of earlier turns when
it renders a dialogue again; this one never renders again, and `rollout.reasoning` says what leaves.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Sequence
from typing import Any

from tarl_jax.sandbox.dialogue import Action
from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer
from tarl_jax.text.reading import Written, read_turn
from tarl_jax.text.tokenizer import AUDIO, AUDIO_END, AUDIO_START, IM_END, IM_START, Tokenizer
from tarl_jax.types import Call


class Chat:
    """Renders parts of a dialogue to ids, and reads agent turns back.

    several: what becomes of a turn with more calls than one; as in `reading.read_turn`.
    thinking: whether the agent may think; what the template begins its turns with hangs on it.

    Attributes:
      begin: what every turn of the agent begins with, forced.
      stop_id, stop_ids: the tokenizer's.
    """

    def __init__(
        self, tokenizer: Tokenizer | PretrainedTokenizer, several: str = "refused",
        thinking: bool = True,
    ):
        self._tokenizer = tokenizer
        self._several = several
        self.begin = tokenizer.begin(thinking)
        self.stop_id = tokenizer.stop_id
        self.stop_ids = tokenizer.stop_ids

    def system(self, text: str, schemas: Sequence[dict[str, Any]] = ()) -> list[int]:
        """The opening system turn, which shows the agent the schemas of its tools."""
        return self._tokenizer.encode_system(text, schemas)

    def greeting(self, text: str) -> list[int]:
        """A turn of the agent's that it has not written: what it says before the user."""
        words, markup = self._tokenizer.encode, self._tokenizer.encode_markup
        # The small tokenizer has no symbol for its beginning alone.
        begin = [*words("\n"), *markup(IM_START), *words("assistant\n")]
        return [*begin, *words(text), *markup(IM_END)]

    def user(self, text: str) -> list[int]:
        """A user turn and the start of the agent's answer."""
        return self._tokenizer.wrap(f"\n{IM_START}user\n", text, f"{IM_END}\n{IM_START}assistant\n")

    def spoken(self, tokens: int) -> tuple[list[int], int]:
        """A user turn that is spoken, and the start of the agent's answer.

        tokens: of the sound, for each of which a placeholder stands.
        Returns: the ids, and the index of the first placeholder among them.
        Raises ValueError where the tokenizer has no markup of sound.
        """
        markup = self._tokenizer.encode_markup
        before = [*markup(f"\n{IM_START}user\n"), *markup(AUDIO_START)]
        after = [*markup(AUDIO_END), *markup(f"{IM_END}\n{IM_START}assistant\n")]
        return before + list(markup(AUDIO)) * tokens + after, len(before)

    def tool(self, text: str, first: bool = True, last: bool = True) -> list[int]:
        """A tool result and the start of the agent's next turn.

        first, last: whether it is that of the results of one turn. Raises ValueError for results of
        several where the tokenizer has no markup between them.
        """
        return self._tokenizer.wrap(
            f"\n{IM_START}user\n<tool_response>\n" if first else "\n<tool_response>\n",
            text,
            f"\n</tool_response>{IM_END}\n{IM_START}assistant\n" if last else "\n</tool_response>",
        )

    def agent(self, action: Call | str) -> list[int]:
        """An agent turn as the policy would write it, its end token included."""
        if isinstance(action, Call):
            call = json.dumps(action.to_json(), ensure_ascii=self._tokenizer.ascii_json)
            return self._tokenizer.wrap("<tool_call>\n", call, f"\n</tool_call>{IM_END}")
        return self._tokenizer.encode(action) + list(self._tokenizer.encode_markup(IM_END))

    def read(self, ids: list[int]) -> tuple[Written, Action]:
        """What an agent's turn says, and what it does. Never raises on any ids.

        ids: as sampled, without `begin`.
        """
        ended = bool(ids) and ids[-1] in self.stop_ids
        text = self._tokenizer.decode([*self.begin, *(ids[:-1] if ended else ids)])
        written = read_turn(text, self._several, ended)
        return written, written.action

    def reasoning(self, ids: list[int]) -> int:
        """How many ids, the first ones, are a turn's reasoning; 0 if it does not begin with it.

        ids: of all of the turn, `begin` included.
        """
        text = self._tokenizer.decode(ids)
        written = read_turn(text)
        if not written.closed:
            return 0
        # Longer beginnings have longer texts.
        count = bisect.bisect_right(
            range(len(ids) + 1), written.behind, key=lambda n: len(self._tokenizer.decode(ids[:n]))
        ) - 1
        # A piece may hold the end of the reasoning and what follows it.
        begins = self._tokenizer.decode(ids[:count])
        return count if written.closed <= len(begins) and text.startswith(begins) else 0
