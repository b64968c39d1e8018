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


OMNI_TOKENS = [*QWEN_TOKENS, "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]


def write_omni(folder, vocab_size=512, audio_ids=(309, 310, 311)):
    """A whole random Qwen2.5-Omni, talker, vocoder and speakers included; returns the model.

    audio_ids: <|audio_bos|>, <|AUDIO|>, <|audio_eos|>.
    """
    import torch
    import transformers

    parts = transformers.models.qwen2_5_omni.configuration_qwen2_5_omni
    rope = dict(rope_type="default", rope_theta=1e6, mrope_section=[2, 1, 1])
    decoder = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                   num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096)
    encoder = dict(num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, d_model=12,
                   encoder_ffn_dim=16, output_dim=32)
    eyes = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=2,
                out_hidden_size=32, fullatt_block_indexes=[0], window_size=8)
    thinker = parts.Qwen2_5OmniThinkerConfig(
        audio_config=encoder, vision_config=eyes, audio_start_token_id=audio_ids[0],
        audio_token_index=audio_ids[1], audio_end_token_id=audio_ids[2],
        text_config=dict(vocab_size=vocab_size, rope_parameters=rope, **decoder),
    )
    talker = parts.Qwen2_5OmniTalkerConfig(
        vocab_size=64, embedding_size=32, head_dim=8, rope_parameters=rope, **decoder,
    )
    voice = parts.Qwen2_5OmniToken2WavConfig(
        dit_config=dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
                        emb_dim=8, num_embeds=65, mel_dim=8, enc_emb_dim=8, enc_dim=8,
                        enc_channels=[8, 8, 8, 8, 24], enc_attention_channels=4, enc_se_channels=4,
                        look_ahead_layers=[0], look_backward_layers=[0]),
        bigvgan_config=dict(mel_dim=8, upsample_initial_channel=64, upsample_rates=[2, 2],
                            upsample_kernel_sizes=[4, 4]),
    )
    torch.manual_seed(0)
    config = parts.Qwen2_5OmniConfig(
        thinker_config=thinker.to_dict(), talker_config=talker.to_dict(),
        token2wav_config=voice.to_dict(),
    )
    model = transformers.Qwen2_5OmniForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    torch.save({"Chelsie": {"bos_token": 5, "cond": torch.ones(1, 8),
                            "ref_mel": torch.ones(1, 4, 8)}}, folder / "spk_dict.pt")
    (folder / "preprocessor_config.json").write_text(json.dumps(
        {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 8}
    ))
    write_tokenizer(folder, OMNI_TOKENS)
    return model
