"""From an image tower's many states to the few tokens that are stored: EDJE's adapter, and its teacher's."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, empty, nn

HEAD_WIDTH = 64
EXPANSION = 8


class Compression(nn.Module):
    """Learned queries that attend to an image's states, so that any number of states becomes `n_tokens` tokens.

    Nothing is added around the attention: what the queries are does not reach the tokens, only what they found. A
    residual feed-forward network and a linear map follow. With an inner width of the tower's own it is the paper's,
    23,545,216 numbers for 64 tokens of width 384 on a tower of width 1024. The paper does not say how many heads; here
    they are 64 wide, as in the towers of CLIP [inferred].

    Args:
        states: width of the tower's states.
        n_tokens: that are made.
        width: of the tokens.
        inner: width of queries, attention and network.

    Source: arXiv:2510.06820, section 4.1.
    """

    def __init__(self, states: int, n_tokens: int, width: int, inner: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(empty(n_tokens, inner).normal_())
        self.key, self.value = nn.Linear(states, inner), nn.Linear(states, inner)
        self.attention = nn.MultiheadAttention(inner, n_heads(inner, HEAD_WIDTH), batch_first=True)
        self.norm = nn.LayerNorm(inner)
        self.mlp = nn.Sequential(nn.Linear(inner, EXPANSION * inner), nn.GELU(), nn.Linear(EXPANSION * inner, inner))
        self.output = nn.Linear(inner, width)

    def forward(self, states: Float[Tensor, "n n_states states"]) -> Float[Tensor, "n n_tokens width"]:
        """The tokens of each image."""
        queries = self.queries.expand(len(states), -1, -1)
        found, _ = self.attention(queries, self.key(states), self.value(states), need_weights=False)
        return self.output(found + self.mlp(self.norm(found)))


class Local(nn.Module):
    """A small network on every state by itself, so that there are as many tokens as states: what the teacher reads.

    Its hidden layer is as wide as the tower [inferred].

    Args:
        states: width of the tower's states.
        width: of the tokens.

    Source: arXiv:2510.06820, section 4.1, where it is called the local variant.
    """

    def __init__(self, states: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(states, states), nn.GELU(), nn.Linear(states, width))

    def forward(self, states: Float[Tensor, "n n_states states"]) -> Float[Tensor, "n n_states width"]:
        """The tokens of each image."""
        tokens: Tensor = self.mlp(states)
        return tokens


def n_heads(width: int, head_width: int) -> int:
    """How many attention heads of about `head_width` divide `width`; at least one."""
    return next(n for n in range(max(1, width // head_width), 0, -1) if width % n == 0)
