"""Blocks and the encoder against PyTorch's pre-LN Transformer on the same weights."""

import functools

import jax
import numpy as np
import pytest

from behrt_jax.models.encoder import Encoder, EncoderBlock, Tokens, attention_bias
from tests import tiny

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("strict_jax")]

CONFIG = tiny.config(num_layers=2, visit_bias=False, rotary="none", time_bins=0)
WIDTH = CONFIG.hidden_dim
EPSILON = 1e-6  # that of Flax
ONE_PATIENT_A_ROW = [[9], [12], [4]]
TWO_PATIENTS_A_ROW = [[5, 4], [3, 9], [2, 10]]


@functools.cache
def drawn(lengths: str):
    """A batch, its hidden states, and weights of our encoder."""
    batch = tiny.packed_batch(ONE_PATIENT_A_ROW if lengths == "one" else TWO_PATIENTS_A_ROW, 12)
    x = np.random.default_rng(1).standard_normal((3, 12, WIDTH)).astype(np.float32)
    columns = [batch[name] for name in ("patient_ids", "visit_ids", "positions", "ages")]
    return batch, x, columns, tiny.scattered(jax.jit(Encoder(CONFIG).init)(jax.random.key(0), x, *columns))["params"]


def torch_block(weights):
    block = torch.nn.TransformerEncoderLayer(
        WIDTH,
        CONFIG.num_heads,
        CONFIG.feedforward_dim,
        dropout=0.0,
        activation=functools.partial(torch.nn.functional.gelu, approximate="tanh"),
        layer_norm_eps=EPSILON,
        batch_first=True,
        norm_first=True,
    ).eval()
    attention, feedforward = weights["attention"], weights["feedforward"]
    block.load_state_dict(
        {
            **dense("self_attn.in_proj_", attention["qkv"]),
            **dense("self_attn.out_proj.", attention["output"]),
            **dense("linear1.", feedforward["input"]),
            **dense("linear2.", feedforward["output"]),
            **norm("norm1.", weights["attention_norm"]),
            **norm("norm2.", weights["feedforward_norm"]),
        }
    )
    return block


def dense(name, weights):
    return {f"{name}weight": tensor(weights["kernel"]).T, f"{name}bias": tensor(weights["bias"])}


def norm(name, weights):
    return {f"{name}weight": tensor(weights["scale"]), f"{name}bias": tensor(weights["bias"])}


def tensor(values):
    return torch.from_numpy(np.array(values))


def hidden_from(batch, lengths: str) -> dict:
    """What torch is told of who may not be seen: padding, or all but a token's own patient (padding sees padding)."""
    patients = torch.from_numpy(batch["patient_ids"])
    if lengths == "one":
        return {"src_key_padding_mask": patients == 0}
    return {"mask": (patients[:, :, None] != patients[:, None, :]).repeat_interleave(CONFIG.num_heads, dim=0)}


def assert_equal(found, expected, batch):
    real = batch["patient_ids"] > 0
    np.testing.assert_allclose(np.asarray(found)[real], expected.detach().numpy()[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("lengths", ["one", "two"])
def test_a_block(lengths):
    batch, x, _, weights = drawn(lengths)
    options = {"src_mask" if name == "mask" else name: mask for name, mask in hidden_from(batch, lengths).items()}
    expected = torch_block(weights["block_0"])(torch.from_numpy(x), **options)
    tokens = Tokens(batch["patient_ids"], batch["visit_ids"], batch["visit_ids"], None)
    bias = attention_bias(tokens, tokens, (0.0,) * CONFIG.num_heads)
    found = EncoderBlock(CONFIG).apply({"params": weights["block_0"]}, x, tokens, tokens, bias, None, True)
    assert_equal(found, expected, batch)


@pytest.mark.parametrize("lengths", ["one", "two"])
def test_the_encoder(lengths):
    batch, x, columns, weights = drawn(lengths)
    last = torch.nn.LayerNorm(WIDTH, eps=EPSILON)
    last.load_state_dict(norm("", weights["norm"]))
    blocks = [torch_block(weights[f"block_{layer}"]) for layer in range(CONFIG.num_layers)]
    encoder = torch.nn.TransformerEncoder(blocks[0], CONFIG.num_layers, last, enable_nested_tensor=False).eval()
    encoder.layers = torch.nn.ModuleList(blocks)
    expected = encoder(torch.from_numpy(x), **hidden_from(batch, lengths))
    assert_equal(jax.jit(Encoder(CONFIG).apply)({"params": weights}, x, *columns), expected, batch)
