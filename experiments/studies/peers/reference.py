"""An eager padded PyTorch BEHRT of the reference's form (Li et al. 2020).

One patient per row, padded to the length of the tier; the sum of code, age, visit and position tables; PyTorch's own
encoder, normalised after each branch; a head over the vocabulary at all positions.
"""

import functools

import torch
from torch import nn
from torch.nn import functional

from experiments.studies.peers import _torch

IGNORED = -100


class Reference(nn.Module):
    """The model."""

    def __init__(self, settings: dict):
        super().__init__()
        sizes, dropout = settings["model"], settings["dropout"]
        tables = (settings["vocabulary"], sizes["embedding_dim"], sizes["max_visits"], settings["padded_length"])
        self.embedding = _torch.Embedding(*tables, dropout)
        self.project = nn.Linear(sizes["embedding_dim"], sizes["hidden_dim"])
        block = nn.TransformerEncoderLayer(
            sizes["hidden_dim"], sizes["num_heads"], sizes["feedforward_dim"], dropout, "gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(block, sizes["num_layers"], enable_nested_tensor=False)
        self.head = nn.Linear(sizes["hidden_dim"], settings["vocabulary"])

    def forward(self, codes, batch):
        """Returns (B, L, D) hidden states."""
        hidden = self.project(self.embedding(codes, batch))
        return self.encoder(hidden, src_key_padding_mask=batch["patient_ids"] == 0)


def logits(model, codes, batch):
    """Computes (B, L, V) logits."""
    return model.head(model(codes, batch))


def losses(model, codes, batch, chosen):
    """Computes the mean loss at the masked codes from logits at all positions."""
    labels = torch.full((codes.numel(),), IGNORED)
    labels[chosen] = batch["codes"].flatten()[chosen]
    return functional.cross_entropy(logits(model, codes, batch).flatten(0, 1), labels, ignore_index=IGNORED)


def embed(model, batch):
    """Returns the mean hidden state of each row."""
    weights = (batch["patient_ids"] != 0).float()
    return torch.einsum("blh,bl->bh", model(batch["codes"], batch), weights / weights.sum(1, keepdim=True))


def start(settings: dict, batches: list[dict]) -> dict:
    """Starts the peer."""
    layout = functools.partial(_torch.pad, length=settings["padded_length"])
    return _torch.start(settings, Reference(settings), batches, _torch.Peer(losses, logits, embed, layout))
