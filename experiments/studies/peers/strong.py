"""A strong PyTorch BEHRT: packed rows, fused attention within patients, the head at masked positions, fused AdamW."""

import torch
from torch import nn
from torch.nn import functional

from experiments.studies.peers import _torch


class Block(nn.Module):
    """A pre-normalised Transformer block."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, feedforward), nn.Linear(feedforward, width)

    def forward(self, x, allowed):
        """Maps (B, L, D) to (B, L, D); `allowed` is (B, 1, L, L) bool."""
        rows, length, width = x.shape
        qkv = self.qkv(self.first_norm(x)).view(rows, length, 3, self.heads, width // self.heads)
        attended = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), attn_mask=allowed)
        attended = self.output(attended.transpose(1, 2).reshape(rows, length, width))
        x = x + functional.dropout(attended, self.rate, self.training)
        expanded = functional.gelu(self.expand(self.second_norm(x)), approximate="tanh")
        return x + functional.dropout(self.contract(expanded), self.rate, self.training)


class Strong(nn.Module):
    """The model."""

    def __init__(self, settings: dict):
        super().__init__()
        sizes, dropout = settings["model"], settings["dropout"]
        tables = (settings["vocabulary"], sizes["embedding_dim"], sizes["max_visits"], settings["row_length"])
        self.embedding = _torch.Embedding(*tables, dropout)
        self.project = nn.Linear(sizes["embedding_dim"], sizes["hidden_dim"])
        shape = (sizes["hidden_dim"], sizes["num_heads"], sizes["feedforward_dim"], dropout)
        self.blocks = nn.ModuleList(Block(*shape) for _ in range(sizes["num_layers"]))
        self.norm = nn.LayerNorm(sizes["hidden_dim"])
        self.transform = nn.Linear(sizes["hidden_dim"], sizes["embedding_dim"])
        self.head_norm = nn.LayerNorm(sizes["embedding_dim"])
        self.bias = nn.Parameter(torch.zeros(settings["vocabulary"]))

    def forward(self, codes, batch):
        """Returns (B, L, D) hidden states."""
        owners = batch["patient_ids"]
        allowed = owners[:, None, :, None] == owners[:, None, None, :]  # padding sees padding
        hidden = self.project(self.embedding(codes, batch))
        for block in self.blocks:
            hidden = block(hidden, allowed)
        return self.norm(hidden)

    def score(self, hidden):
        """Maps (N, D) to (N, V) logits by the code table."""
        queries = self.head_norm(functional.gelu(self.transform(hidden), approximate="tanh"))
        return functional.linear(queries, self.embedding.codes.weight, self.bias)


def losses(model, codes, batch, chosen):
    """Computes the mean loss at the masked codes, from logits at these alone."""
    hidden = model(codes, batch).flatten(0, 1)[chosen]
    return functional.cross_entropy(model.score(hidden), batch["codes"].flatten()[chosen])


def logits(model, codes, batch):
    """Computes (B, L, V) logits."""
    return model.score(model(codes, batch))


def embed(model, batch):
    """Returns the mean hidden state of each patient of each row."""
    owners = batch["patient_ids"]
    members = (owners[:, None, :] == torch.arange(1, int(owners.max()) + 1)[None, :, None]).float()
    return members @ model(batch["codes"], batch) / members.sum(-1, keepdim=True).clamp(min=1)


def start(settings: dict, batches: list[dict]) -> dict:
    """Starts the peer."""
    return _torch.start(settings, Strong(settings), batches, _torch.Peer(losses, logits, embed), fused=True)
