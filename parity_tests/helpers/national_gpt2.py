"""A small GPT-2 whose tokenizer is not OpenAI's: a byte-level BPE of its own, as models of other languages have."""

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxgpt.config import GPT2Config
from jaxgpt.formats.hugging_face import save_hf
from jaxgpt.models import init_params

LINE = "ეს სახლი {} არის დიდი, the house is big; 大きな家 {}\n\tჰ <|endoftext|> 🏠!"
LINES = [LINE.format(i, i * 7 % 13) for i in range(60)]
END = "<|endoftext|>"


def make_byte_level(alphabet=True, **settings) -> tokenizers.Tokenizer:
    """A national GPT-2's: byte-level BPE, <|endoftext|>."""
    made: Any = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **settings})
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[END], initial_alphabet=letters, show_progress=False)
    made.train_from_iterator(LINES, trainer)
    return made


def save_national_gpt2(directory: Path) -> GPT2Config:
    """A Hugging Face directory: weights, config.json, tokenizer.json."""
    made = make_byte_level()
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=32, seq_len=32, vocab_size=made.get_vocab_size(), bias=True, gelu="tanh"
    )
    weights = {path: np.asarray(weight) for path, weight in init_params(config).items()}
    save_hf(directory, config, weights, dict.fromkeys(("bos_token_id", "eos_token_id"), made.token_to_id(END)))
    made.save(str(directory / "tokenizer.json"))
    return config
