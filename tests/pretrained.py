"""Makes a small checkpoint folder such as one downloads: weights, config, tokenizer, template."""

import json

QWEN_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>",
    "<tool_response>", "</tool_response>", "<think>", "</think>",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n"
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endfor %}"
)


def write_tokenizer(folder, special=QWEN_TOKENS):
    """A byte-level BPE of about 300 pieces."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(["the order of the user", "the item in the order"], trainer)
    bpe.add_special_tokens(special[:3])
    bpe.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in special[3:]])
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE,
        "eos_token": special[-1] if len(special) < 3 else "<|im_end|>",
    }))


def write_checkpoint(folder, **shape):
    """A random Qwen3 with that tokenizer; returns transformers' model."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3Config(**shape)
    model = transformers.Qwen3ForCausalLM(config).float().eval()
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model
