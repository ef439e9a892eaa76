"""BertForMaskedLM of Hugging Face with a tier's width, depth and heads, on the padded rows of `reference`.

Its code table has the hidden width. The embeddings of ages, visits and codes are summed into `inputs_embeds`; BERT adds
its own position table.
"""

import functools

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from experiments.studies.peers import _torch

IGNORED = -100


class HuggingFace(nn.Module):
    """The model."""

    def __init__(self, settings: dict):
        super().__init__()
        sizes, dropout = settings["model"], settings["dropout"]
        config = BertConfig(
            vocab_size=settings["vocabulary"],
            hidden_size=sizes["hidden_dim"],
            num_hidden_layers=sizes["num_layers"],
            num_attention_heads=sizes["num_heads"],
            intermediate_size=sizes["feedforward_dim"],
            max_position_embeddings=settings["padded_length"],
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.bert = BertForMaskedLM(config)
        self.ages = nn.Embedding(int(_torch.LAST_AGE // _torch.AGE_BIN) + 2, sizes["hidden_dim"])
        self.visits = nn.Embedding(sizes["max_visits"], sizes["hidden_dim"])
        for table in (self.ages, self.visits):
            nn.init.normal_(table.weight, std=0.02)

    def inputs(self, codes, batch) -> dict:
        """Returns the arguments of BERT."""
        ages = batch["ages"].nan_to_num(-1.0).clamp(-1.0, _torch.LAST_AGE)
        embedded = self.bert.get_input_embeddings()(codes) + self.ages((ages // _torch.AGE_BIN).long() + 1)
        embedded = embedded + self.visits(batch["visit_ids"].clamp(max=self.visits.num_embeddings - 1))
        return {"inputs_embeds": embedded, "attention_mask": (batch["patient_ids"] != 0).long()}


def logits(model, codes, batch):
    """Computes (B, L, V) logits."""
    return model.bert(**model.inputs(codes, batch)).logits


def losses(model, codes, batch, chosen):
    """Computes the mean loss at the masked codes."""
    labels = torch.full((codes.numel(),), IGNORED)
    labels[chosen] = batch["codes"].flatten()[chosen]
    return model.bert(**model.inputs(codes, batch), labels=labels.view_as(codes)).loss


def embed(model, batch):
    """Returns the mean hidden state of each row."""
    hidden = model.bert.bert(**model.inputs(batch["codes"], batch)).last_hidden_state
    weights = (batch["patient_ids"] != 0).float()
    return torch.einsum("blh,bl->bh", hidden, weights / weights.sum(1, keepdim=True))


def start(settings: dict, batches: list[dict]) -> dict:
    """Starts the peer."""
    layout = functools.partial(_torch.pad, length=settings["padded_length"])
    return _torch.start(settings, HuggingFace(settings), batches, _torch.Peer(losses, logits, embed, layout))
