"""Shared by the PyTorch peers: embeddings, masks, the train step, and training to an accuracy."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

MASK_ID, FIRST_CODE_ID = 3, 5
AGE_BIN, LAST_AGE = 5.0, 100.0  # years
COLUMNS = ("codes", "ages", "visit_ids", "positions", "patient_ids", "maskable")
MASKED_COLUMNS = ("inputs", "labels")  # of batches that are masked already; 0 is no label
FINAL_SHARE = 0.01  # of the peak learning rate


class Peer(NamedTuple):
    """What a peer computes.

    Attributes:
      losses: (model, codes, batch, chosen indices) -> mean loss at these.
      logits: (model, codes, batch) -> (B, L, V).
      embed: (model, batch) -> embeddings of patients.
      layout: from a packed batch to one in the peer's layout.
    """

    losses: Callable
    logits: Callable
    embed: Callable
    layout: Callable = lambda batch: batch


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
    names = [name for name in (*COLUMNS, *MASKED_COLUMNS) if name in batch]
    tensors = {name: torch.from_numpy(np.ascontiguousarray(batch[name])) for name in names}
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
    for name in (name for name in (*COLUMNS, *MASKED_COLUMNS) if name in batch):
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


def start(settings: dict, model: nn.Module, batches: list[dict], peer: Peer, **adamw) -> dict:
    """Starts a peer; see `behrt_jax.benchmarks.worker`.

    Args:
      settings: of the workload.
      model: the peer.
      batches: packed.
      peer: its functions.
      **adamw: options of AdamW.
    """
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    recipe = settings["optimizer"]
    options = {"lr": recipe["learning_rate"], "betas": (0.9, recipe["b2"]), "weight_decay": recipe["weight_decay"]}
    optimizer = torch.optim.AdamW(model.parameters(), **options, **adamw)

    def train(batch):
        codes, chosen = mask(batch, settings["mask_rate"], settings["vocabulary"])
        optimizer.zero_grad(set_to_none=True)
        loss = peer.losses(model, codes, batch, chosen)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe["clip_norm"])
        optimizer.step()
        return loss.item(), len(chosen)

    def infer(batch):
        with torch.inference_mode():
            peer.embed(model, batch)
        return 0.0, 0

    if settings["what"] == "main_job":
        return {"measure": lambda: run_job(settings, model, optimizer, train, peer)}
    is_inference = settings["what"] == "inference"
    laid_out = [peer.layout(batch) for batch in batches]
    tensors = [to_tensors(batch) for batch in laid_out]
    model.train(not is_inference)
    return {
        "step": lambda number: (infer if is_inference else train)(tensors[number]),
        "read": lambda number: laid_out[number]["codes"][laid_out[number]["patient_ids"] != 0],
        "measure": lambda: {"parameters": sum(leaf.numel() for leaf in model.parameters())},
    }


def run_job(settings: dict, model: nn.Module, optimizer, train: Callable, peer: Peer) -> dict:
    """Trains on the batches of `settings["job"]` by the recipe's schedule; returns accuracies on tuning by seconds."""
    begin = time.perf_counter()
    with np.load(settings["job"], allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}

    def tensors_of(number: int, prefix: str = "") -> dict:
        names = [name for name in (*COLUMNS, *MASKED_COLUMNS) if prefix + name in arrays]
        return to_tensors(peer.layout({name: arrays[prefix + name][number] for name in names}))

    tuning = [tensors_of(number, "tuning_") for number in range(len(arrays["tuning_codes"]))]
    updates, share = len(arrays["codes"]), settings["optimizer"]["warmup_share"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: learning_rate_share(update, share, updates))
    lines, started = [], time.perf_counter()
    for number in range(updates):
        model.train()
        train(tensors_of(number))
        schedule.step()
        if (number + 1) % settings["evaluate_every"] == 0 or number + 1 == updates:
            lines.append((time.perf_counter() - started, accuracy(model, tuning, peer.logits)))
    return {"lines": lines, "total_seconds": time.perf_counter() - begin}


def learning_rate_share(update: int, warmup_share: float, updates: int) -> float:
    """Returns the share of the peak learning rate of an update, from 0 on: linear warm-up, then a cosine."""
    warmup, done = int(warmup_share * updates), update + 1
    if done < warmup:
        return done / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / max(1, updates - warmup))))
    return FINAL_SHARE + (1 - FINAL_SHARE) * cosine


def accuracy(model: nn.Module, batches: list[dict], logits: Callable) -> float:
    """Returns the share of masked codes that have the highest logit."""
    model.eval()
    right = total = 0
    with torch.inference_mode():
        for batch in batches:
            chosen = batch["labels"] > 0
            found = logits(model, batch["inputs"], batch)[chosen].argmax(-1)
            right += int((found == batch["labels"][chosen]).sum())
            total += len(found)
    return right / total
