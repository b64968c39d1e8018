"""The embedded SentencePiece tokenizer: text on one side, chat markup on the other.

Markup is encoded only by `encode_markup`, from the code that lays out the chat. Text that a user
or a tool wrote goes through `encode`, which can never yield a markup id, so nobody can speak in
another's role by writing `<|im_end|>`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tarl_jax.config import InputError, MissingFileError

EMBEDDED_MODEL = Path(__file__).with_name("shop.model")
# Domains whose dialogues the shop's pieces would spell letter by letter.
OWN_MODELS = {"telecom": Path(__file__).with_name("network.model")}

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
# Around sound, and in the place of each of its tokens; Qwen2.5-Omni's.
AUDIO_START, AUDIO, AUDIO_END = "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"
# Each is one piece. The longer ones are runs of Qwen's chat markup that always occur together; the
# text they stand for is the same as if written out piece by piece.
MARKUP = (
    IM_END,
    IM_START,
    "<think>\n",
    "\n</think>\n\n",
    "<tool_call>\n",
    "\n</tool_call>",
    f"{IM_START}system\n",
    f"\n{IM_START}user\n",
    f"\n{IM_START}user\n<tool_response>\n",
    f"{IM_END}\n{IM_START}assistant\n",
    f"\n</tool_response>{IM_END}\n{IM_START}assistant\n",
)


class Tokenizer:
    """A SentencePiece model with the markup above as control symbols.

    with_audio: whether there is markup of sound; its ids come behind those of the model file.
      Numbers are then spelled digit by digit, as they are said.

    Attributes:
      ascii_json: JSON of calls is written in ASCII: the model's pieces know few other characters.
      special_ids: the markup, and what stands for characters that the model does not know.

    Raises FileNotFoundError if there is no model at `path`, ValueError if the model was not made
    for this markup.
    """

    ascii_json = True

    def __init__(self, path: Path = EMBEDDED_MODEL, with_audio: bool = False):
        import sentencepiece

        if not Path(path).is_file():
            raise MissingFileError(
                f"tokenizer model {path} does not exist; make it with"
                " `python -m tarl_jax.text.train_tokenizer`"
            )
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        self.vocab_size = self._model.get_piece_size()
        self._markup = {}
        for position, text in enumerate(MARKUP):
            token = self._model.piece_to_id(symbol(position))
            if not self._model.is_control(token):
                raise InputError(f"{path}: has no control symbol for {text!r}; train it again")
            self._markup[text] = token
        self._digits: dict[int, tuple[int, ...]] = {}
        if with_audio:
            self._digits = self._spelled()
            for text in (AUDIO_START, AUDIO, AUDIO_END):
                self._markup[text] = self.vocab_size
                self.vocab_size += 1
        self._surface = {token: text for text, token in self._markup.items()}
        self.stop_id = self._markup[IM_END]
        self.stop_ids = (self.stop_id,)
        self.special_ids = frozenset({*self._surface, self._model.unk_id()})

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; markup in it is text like any other."""
        # A policy can write half of a surrogate pair as a JSON escape, and a tool may echo it.
        # A carriage return is no symbol of the model; other tokenizers have one.
        text = text.replace("\r\n", "\n")
        ids = self._model.encode(text.encode("utf-8", "replace").decode("utf-8"))
        if not self._digits:
            return ids
        return [digit for token in ids for digit in self._digits.get(token, (token,))]

    @functools.lru_cache(maxsize=1024)  # noqa: B019  (one tokenizer lives as long as its run)
    def encode_markup(self, text: str) -> tuple[int, ...]:
        """Ids of a run of markup, longest piece first. Raises ValueError if it is not markup."""
        ids: list[int] = []
        rest = text
        while rest:
            found = max((m for m in self._markup if rest.startswith(m)), key=len, default=None)
            if found is None:
                raise ValueError(f"{rest!r} is not chat markup; known: {list(self._markup)}")
            ids.append(self._markup[found])
            rest = rest[len(found):]
        return tuple(ids)

    def wrap(self, before: str, text: str, after: str) -> list[int]:
        """Ids of plain text between two runs of markup."""
        return [*self.encode_markup(before), *self.encode(text), *self.encode_markup(after)]

    def begin(self, thinking: bool) -> tuple[int, ...]:
        """What every turn of the agent begins with, forced: an empty thought, or nothing."""
        return () if thinking else self.encode_markup("<think>\n\n</think>\n\n")

    def encode_system(self, text: str, schemas: Sequence[dict[str, Any]]) -> list[int]:
        """The opening system turn; the tools' schemas as JSON lines behind the text."""
        lines = [text, *(["", "# Tools"] if schemas else []), *(json.dumps(s) for s in schemas)]
        start, end = self.encode_markup(f"{IM_START}system\n"), self.encode_markup(IM_END)
        return [*start, *self.encode("\n".join(lines)), *end]

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """Text of `ids`, markup spelled out."""
        parts: list[str] = []
        plain: list[int] = []
        for token in map(int, ids):
            if token in self._surface:
                parts.append(self._model.decode(plain))
                parts.append(self._surface[token])
                plain = []
            else:
                plain.append(token)
        parts.append(self._model.decode(plain))
        return "".join(parts)

    def _spelled(self) -> dict[int, tuple[int, ...]]:
        """The digits' ids of each piece that is a number of several."""
        pieces = {token: self._model.id_to_piece(token) for token in range(self.vocab_size)}
        numbers = {token: p for token, p in pieces.items() if p.isdecimal() and len(p) > 1}
        return {t: tuple(self._model.piece_to_id(d) for d in p) for t, p in numbers.items()}

    def pieces(self) -> list[bytes]:
        """What each id adds to a decoded text, in UTF-8."""
        return [self.decode([token]).encode() for token in range(self.vocab_size)]


def embedded_model(domain: str) -> Path:
    """The model file whose pieces are a domain's words; the shop's, where none was made for it."""
    return OWN_MODELS.get(domain, EMBEDDED_MODEL)


def symbol(position: int) -> str:
    """The name inside the model file of `MARKUP[position]` (it may not hold a line break)."""
    return f"<markup_{position}>"
