"""Peak speeds and memory of accelerators, as their makers state them."""

from typing import NamedTuple


class Device(NamedTuple):
    """An accelerator.

    Attributes:
      name: its full name.
      float32: peak FLOP/s of float32 products outside tensor cores.
      bfloat16: peak FLOP/s of dense bfloat16 products.
      memory: bytes.
    """

    name: str
    float32: float
    bfloat16: float
    memory: float

    @property
    def fastest_dtype(self) -> str:
        """The dtype of `model.dtype="auto"` on this device."""
        return "bfloat16" if self.bfloat16 > self.float32 else "float32"


# NVIDIA data sheets (dense figures, without sparsity): A40 of 2021, A100 80GB SXM of 2021, H100 SXM of 2023, H200 SXM
# of 2024. Apple states 2.6 TFLOP/s for the GPU of the M1, whose memory is that of the machine: 16 GB are assumed, and
# no gain from bfloat16.
DEVICES = {
    "a40": Device("NVIDIA A40", 37.4e12, 149.7e12, 48e9),
    "a100": Device("NVIDIA A100 80GB", 19.5e12, 312e12, 80e9),
    "h100": Device("NVIDIA H100 SXM", 67e12, 989e12, 80e9),
    "h200": Device("NVIDIA H200 SXM", 67e12, 989e12, 141e9),
    "m1": Device("Apple M1", 2.6e12, 2.6e12, 16e9),
}
