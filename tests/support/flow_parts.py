"""Parts that tiny pipelines of flow matching have in common: encoders, tokenizers, a decoder."""

from typing import Any

from diffusers import AutoencoderKL
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from nablaflow.nano.pretrain.text import build_tokenizer, build_word_tokenizer

PIXELS = 16
WORDS = ("a", "red", "blue", "circle", "square", "star", "no")
FEW: dict[str, Any] = {"max_sequence_length": 16}
"""In tests of something else: the usual 512 tokens are most of a tiny model's work."""
SMALL: dict[str, Any] = {"height": PIXELS, "width": PIXELS, **FEW}
CLIP_WIDTH, T5_WIDTH, QWEN_WIDTH = 8, 24, 8


def autoencoder(channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=PIXELS,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def clip(kind: Any) -> Any:
    tokenizer = build_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=CLIP_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return kind(config)


def t5_tokenizer() -> Any:
    return build_word_tokenizer(WORDS)


def t5_encoder() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=3 + len(WORDS),
            d_model=T5_WIDTH,
            d_ff=16,
            d_kv=8,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
        )
    )


def byte_tokenizer() -> Qwen2Tokenizer:
    """A language model's, whose words are single bytes."""
    words = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()))
    tokenizer = Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"
    return tokenizer


def qwen(tokenizer: Qwen2Tokenizer, layers: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=QWEN_WIDTH,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
    )
    return Qwen3ForCausalLM(config)
