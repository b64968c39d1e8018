"""Trains the embedded tokenizer on the shop's own text.

    python -m tarl_jax.text.train_tokenizer

writes `tarl_jax/text/shop.model`. Its pieces are the shop's values (names, products, options), the
phrases that stand between values in dialogues and tool results, and single characters, so that

- a value is the same piece wherever it stands, and a set phrase is one token (a tool call takes
  about nine, which keeps episodes short enough to learn from in minutes);
- a number of two or three digits is one piece, and so is every id: a small policy learns to copy
  one token in minutes, but not a run of digits, of which each stands in many places;
- all of printable ASCII, space and line break can be encoded.

Byte-pair encoding was tried first: with this little distinct text it spends most of its pieces on
the inner parts of phrases, and episodes were 2.5 times as long.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import re
from pathlib import Path

from tarl_jax.config import ClerkConfig, ShopConfig, TaskConfig
from tarl_jax.sandbox import phrases, shop
from tarl_jax.sandbox.clerk import play
from tarl_jax.sandbox.dialogue import Dialogue
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.text.tokenizer import EMBEDDED_MODEL, MARKUP, symbol
from tarl_jax.types import Call

MAX_PHRASES = 400
# The clerk whose dialogues are counted: its own, so that the pieces do not change with the default.
CLERK = ClerkConfig(
    skip_confirmation=0.1, wrong_variant=0.1, wrong_item=0.08, wrong_reason=0.1,
    wrongful_denial=0.05, ignore_rule=0.3, false_done=0.03, transfer=0.01, redundant_read=0.03,
    retry=0.0,
)  # fmt: skip


def shop_phrases(num_tasks: int) -> list[str]:
    """The phrases between values in `num_tasks` dialogues that save the most tokens."""
    config = ShopConfig()
    domain = retail_domain(shop.make_shop(config))
    texts: list[str] = [phrases.SYSTEM]
    for task in make_tasks(domain, config, TaskConfig(num_train=num_tasks), "train"):
        for seed in range(2):
            dialogue = Dialogue(task, domain, ScriptedUser(task, seed), brief_writes=seed == 0)
            texts.append(dialogue.opening)
            for action, observation in play(dialogue, CLERK, seed):
                said = json.dumps(action.to_json()) if isinstance(action, Call) else action
                texts.append(said)
                texts.append(observation.text)
    whole = "|".join(map(re.escape, address_phrases()))
    names = "|".join(map(re.escape, sorted(shop_values(), key=len, reverse=True)))
    states = "|".join(shop.STATUS_WEIGHTS)  # but not inside a tool's name
    cut = re.compile(
        rf"{whole}|(?<![A-Za-z])(?:{names})(?![A-Za-z])|(?<![a-z_])(?:{states})(?![a-z_])"
        r"|\d|(?<=[a-z][.!?:] )"
    )
    counts = collections.Counter(part for text in texts for part in cut.split(text))
    ranked = sorted(counts, key=lambda part: (-counts[part] * (len(part) - 1), part))
    return [part for part in ranked if len(part) > 1 and counts[part] > 1][:MAX_PHRASES]


def shop_values() -> list[str]:
    """The words that are pieces by themselves."""
    words = {*shop.PRODUCTS, *shop.COLORS, *shop.SIZES, *shop.MATERIALS}
    for name in (*shop.FIRST_NAMES, *shop.LAST_NAMES):
        words |= {name, name.lower()}
    words |= {str(number) for number in range(10, 1000)} | {a[3] for a in shop.ADDRESSES}
    words |= {"gift_card", "credit_card", "paypal", "gift card", "credit card", "@mail.com"}
    return sorted(words)


def address_phrases() -> list[str]:
    """The parts of a rendered address that hold no digit of a zip code."""
    return [
        f'"address": {{"address1": "{street}", "address2": "", "city": "{city}",'
        f' "country": "USA", "state": "{state}", "zip": "'
        for street, city, state, _ in shop.ADDRESSES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=EMBEDDED_MODEL)
    parser.add_argument("--num_tasks", type=int, default=1500)
    args = parser.parse_args()
    import sentencepiece

    # Inside a model, U+2581 stands for a space.
    pieces = sorted({
        *shop_values(), *shop.STATUS_WEIGHTS, *address_phrases(),
        phrases.SYSTEM, *shop_phrases(args.num_tasks),
    })
    pieces = [piece.replace(" ", "\u2581") for piece in pieces]
    ascii_text = "".join(map(chr, range(33, 127)))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a \n" + ascii_text]),
        model_writer=model,
        model_type="char",
        vocab_size=4096,
        use_all_vocab=True,
        control_symbols=[symbol(i) for i in range(len(MARKUP))],
        user_defined_symbols=pieces,
        required_chars=ascii_text,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    args.out.write_bytes(model.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_file=str(args.out)).get_piece_size()
    print(f"{args.out}: {size} pieces")


if __name__ == "__main__":
    main()
