"""GPT-2 as nanoGPT trains it: its shape, and what follows from it."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from jaxgpt.config.families.family import Family, ParamCount, ParamRule
from jaxgpt.errors import require


@dataclass(frozen=True)
class GPT2Config(Family):
    """GPT-2 as nanoGPT trains it: learned positions, LayerNorm before each sublayer, tied head."""

    RULES: ClassVar = (
        ParamRule(r"wte\.weight", ("tensor", "fsdp")),
        ParamRule(r"wpe\.weight", (None, "fsdp")),
        ParamRule(r"h\.\d+\.attn\.c_attn\.weight", ("fsdp", "tensor"), is_transposed=True),
        ParamRule(r"h\.\d+\.attn\.c_proj\.weight", (("tensor", "fsdp"),), is_transposed=True),
        ParamRule(r"h\.\d+\.mlp\.c_fc\.weight", ("fsdp", "tensor"), is_transposed=True),
        ParamRule(r"h\.\d+\.mlp\.c_proj\.weight", (("tensor", "fsdp"),), is_transposed=True),
        ParamRule(r"h\.\d+\.(attn|mlp)\.c_\w+\.bias", is_optional=True),
        ParamRule(r"(h\.\d+\.ln_[12]|ln_f)\.(weight|bias)"),
    )

    family: Literal["gpt2"] = "gpt2"
    """Model family."""
    vocab_size: int = 0
    """Rows of the embedding; 0: as many as the data's tokenizer has. 50304 pads GPT-2's 50257 to 64."""
    seq_len: int = 1024
    """Context length in tokens: positions the model has, and the length of a training row."""
    n_layer: int = 12
    """Blocks."""
    n_head: int = 12
    """Attention heads per block."""
    n_embd: int = 768
    """Width of the residual stream."""
    bias: bool = False
    """Biases in linear layers and norms, as in OpenAI's weights. False is a little faster and better."""
    dropout: float = 0.0
    """Dropout on embeddings, attention probabilities and both outputs of a block. 0 for pretraining."""
    gelu: Literal["erf", "tanh"] = "erf"
    """erf: nanoGPT. tanh: the approximation that OpenAI's and Hugging Face's GPT-2 weights expect."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            require(value >= 1, f"model.{name}={value} is below 1; choose a positive number")
        require(
            self.seq_len >= 2,
            f"model.seq_len={self.seq_len} is below 2; a token needs one before it to be predicted from",
        )
        require(self.vocab_size >= 0, f"model.vocab_size={self.vocab_size} is negative; 0 uses the tokenizer's size")
        require(0 <= self.dropout < 1, f"model.dropout={self.dropout} is outside [0, 1); 0 turns it off")
        lower = self.n_embd // self.n_head * self.n_head
        require(
            self.n_embd % self.n_head == 0,
            f"model.n_embd={self.n_embd} is not a multiple of model.n_head={self.n_head}; "
            f"nearest widths: {lower or self.n_head}, {lower + self.n_head}",
        )

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def n_kv_head(self) -> int:
        return self.n_head

    def complete(self, n_ids: int) -> Self:
        """Nothing but the vocabulary is ever open."""
        return dataclasses.replace(self, vocab_size=self.vocab_size or n_ids)

    def count_params(self) -> ParamCount:
        n_embd, has_bias = self.n_embd, int(self.bias)
        norm = n_embd * (1 + has_bias)
        matrices = (3 + 1 + 4 + 4) * n_embd**2
        biases = (3 + 1 + 4 + 1) * n_embd * has_bias
        block = matrices + biases + 2 * norm
        wpe = self.seq_len * n_embd
        total = self.vocab_size * n_embd + wpe + self.n_layer * block + norm
        return ParamCount(total=total, wpe=wpe, linear=total - wpe, scaling=total)

    def window(self, layer: int) -> int:
        return self.seq_len

    def shrink(self, seq_len: int) -> Self:
        return dataclasses.replace(self, n_layer=2, n_head=2, n_embd=32, vocab_size=0, seq_len=seq_len)

    def longest_row(self) -> int:
        return self.seq_len

    def without_dropout(self) -> Self:
        return dataclasses.replace(self, dropout=0.0)
