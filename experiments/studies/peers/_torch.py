"""Shared by the PyTorch peers: embeddings, masks, and the train step."""

import numpy as np
import torch
from torch import nn

MASK_ID, FIRST_CODE_ID = 3, 5
AGE_BIN, LAST_AGE = 5.0, 100.0  # years
COLUMNS = ("codes", "ages", "visit_ids", "positions", "patient_ids", "maskable")


class Embedding(nn.Module):
    """The sum of code, age, visit and position tables, normalised, with dropout."""

    def __init__(self, vocabulary: int, dim: int, max_visits: int, max_positions: int, dropout: float):
        super().__init__()
        self.codes = nn.Embedding(vocabulary, dim)
        self.ages = nn.Embedding(int(LAST_AGE // AGE_BIN) + 2, dim)
        self.visits = nn.Embedding(max_visits, dim)
        self.positions = nn.Embedding(max_positions, dim)
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)
        for table in (self.codes, self.ages, self.visits, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, codes, batch):
        """Maps (B, L) codes and the columns of a batch to (B, L, dim)."""
        ages = batch["ages"].nan_to_num(-1.0).clamp(-1.0, LAST_AGE)
        total = self.codes(codes) + self.ages((ages // AGE_BIN).long() + 1)
        total = total + self.visits(batch["visit_ids"].clamp(max=self.visits.num_embeddings - 1))
        total = total + self.positions(batch["positions"].clamp(max=self.positions.num_embeddings - 1))
        return self.dropout(self.norm(total))


def to_tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Returns the columns that peers read: ints as int64."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(batch[name])) for name in COLUMNS}
    return {
        name: value if value.dtype in (torch.float32, torch.bool) else value.long() for name, value in tensors.items()
    }


def pad(batch: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """Lays out a packed batch with one patient per row; cuts those of more than `length` tokens into several rows.

    No token is lost, so that all contestants read the same.
    """
    owners = batch["patient_ids"]
    rows, places = np.nonzero(owners)
    keys = rows * (owners.max() + 1) + owners[rows, places]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    offsets = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
    targets, columns = np.cumsum(offsets % length == 0) - 1, offsets % length
    padded = {}
    for name in COLUMNS:
        padded[name] = np.zeros((targets[-1] + 1, length), batch[name].dtype)
        padded[name][targets, columns] = batch[name][rows, places]
    return {**padded, "patient_ids": (padded["patient_ids"] > 0).astype(np.int32)}


def mask(batch: dict[str, torch.Tensor], rate: float, vocabulary: int):
    """Masks a share of the maskable codes: 80% [MASK], 10% random, 10% unchanged.

    Returns:
      (B, L) codes, and the indices of the masked ones in the flat batch.
    """
    maskable = batch["maskable"].flatten().nonzero().squeeze(1)
    chosen = maskable[torch.randperm(len(maskable))[: round(rate * len(maskable))]]
    action = torch.rand(len(chosen))
    codes = batch["codes"].flatten().clone()
    random_codes = torch.randint(FIRST_CODE_ID, vocabulary, (len(chosen),))
    codes[chosen] = torch.where(action < 0.8, MASK_ID, torch.where(action < 0.9, random_codes, codes[chosen]))
    return codes.view_as(batch["codes"]), chosen


def start(settings: dict, model: nn.Module, batches: list[dict], losses, embed, **adamw) -> dict:
    """Starts a peer; see `behrt_jax.benchmarks.worker`.

    Args:
      settings: of the workload.
      model: the peer.
      batches: in the peer's layout.
      losses: (model, codes, batch, chosen indices) -> mean loss at these.
      embed: (model, batch) -> embeddings of patients.
      **adamw: options of AdamW.
    """
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    tensors, recipe = [to_tensors(batch) for batch in batches], settings["optimizer"]
    options = {"lr": recipe["learning_rate"], "betas": (0.9, recipe["b2"]), "weight_decay": recipe["weight_decay"]}
    optimizer = torch.optim.AdamW(model.parameters(), **options, **adamw)

    def train(number: int):
        codes, chosen = mask(tensors[number], settings["mask_rate"], settings["vocabulary"])
        optimizer.zero_grad(set_to_none=True)
        loss = losses(model, codes, tensors[number], chosen)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe["clip_norm"])
        optimizer.step()
        return loss.item(), len(chosen)

    def infer(number: int):
        with torch.inference_mode():
            embed(model, tensors[number])
        return 0.0, 0

    is_inference = settings["what"] == "inference"
    model.train(not is_inference)
    return {
        "step": infer if is_inference else train,
        "read": lambda number: batches[number]["codes"][batches[number]["patient_ids"] != 0],
        "measure": lambda: {"parameters": sum(leaf.numel() for leaf in model.parameters())},
    }
