"""What the card does at best, measured: bytes a second, and operations a second of the kernels that clips are made of.

A multiplication and an addition are two operations. Data are random: zeros run faster than anything that is rendered.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_parts.bench import Bench
from gpu_parts.cases import Case


def cases(bench: Bench) -> list[Case]:
    """One case each for memory, bus, matrix products, convolutions and attention."""
    found = {
        "memory": (3.0, copies),
        "bus": (6.0, transfers),
        "gemm": (5.0, products),
        "convolution": (6.0, convolutions),
        "attention": (6.0, attentions),
    }
    return [
        Case(part="ceilings", name=name, cost_s=cost, work=partial(work, bench), rank=int(name not in ("bus", "gemm")))
        for name, (cost, work) in found.items()
    ]


def copies(bench: Bench) -> dict[str, Any]:
    """Copying within the card's memory, bytes read and written both counted."""
    count = 2**20 if bench.tiny else 2**32
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=bench.torch_device)
    target = torch.empty_like(source)
    return {"copy_gb_s": 2 * count / bench.seconds(lambda: target.copy_(source), runs=5) / 1e9}


def transfers(bench: Bench) -> dict[str, Any]:
    """Copying between host and card, from memory that may be paged out and from memory that may not."""
    count = 2**20 if bench.tiny else 2**30
    there = torch.empty(count, dtype=torch.uint8, device=bench.torch_device)
    paged = torch.randint(0, 255, (count,), dtype=torch.uint8)
    found = {"to_card_paged_gb_s": count / bench.seconds(lambda: there.copy_(paged)) / 1e9}
    if bench.cuda:
        pinned = paged.pin_memory()
        found["to_card_pinned_gb_s"] = count / bench.seconds(lambda: there.copy_(pinned, non_blocking=True)) / 1e9
        found["to_host_pinned_gb_s"] = count / bench.seconds(lambda: pinned.copy_(there, non_blocking=True)) / 1e9
    return found


def products(bench: Bench) -> dict[str, Any]:
    """Square matrix products; `tf32` is float32 tensors with TensorFloat-32 allowed."""
    side = 128 if bench.tiny else 8192
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("tf32", torch.float32)):
        a, b = (torch.randn(side, side, device=bench.torch_device).to(dtype) for _ in range(2))
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            seconds = bench.seconds(partial(torch.matmul, a, b), runs=10, warm=3)
        finally:
            torch.set_float32_matmul_precision(before)
        found[f"{name}_tflops"] = 2 * side**3 / seconds / 1e12
    return found


def convolutions(bench: Bench) -> dict[str, Any]:
    """A 3×3 convolution of a UNet's first level and a 3×3×3 one of a video decoder, in both arrangements of memory."""
    rows, side, channels = (2, 8, 16) if bench.tiny else (32, 64, 320)
    image = torch.randn(rows, channels, side, side, device=bench.torch_device).half()
    kernel = torch.randn(channels, channels, 3, 3, device=bench.torch_device).half()
    flat = 2 * rows * side**2 * channels**2 * 9
    found = {}
    for name, memory in (("nchw", torch.contiguous_format), ("channels_last", torch.channels_last)):
        x, w = image.to(memory_format=memory), kernel.to(memory_format=memory)
        seconds = bench.seconds(partial(functional.conv2d, x, w, padding=1), runs=10, warm=3)
        found[f"2d_fp16_{name}_tflops"] = flat / seconds / 1e12
    high, wide, channels = (8, 8, 8) if bench.tiny else (176, 320, 256)
    frames = 4
    video = torch.randn(1, channels, frames, high, wide, device=bench.torch_device)
    kernel = torch.randn(channels, channels, 3, 3, 3, device=bench.torch_device)
    deep = 2 * frames * high * wide * channels**2 * 27
    for name, memory in (("ncdhw", torch.contiguous_format), ("channels_last", torch.channels_last_3d)):
        x, w = video.to(memory_format=memory), kernel.to(memory_format=memory)
        seconds = bench.seconds(partial(functional.conv3d, x, w, padding=1), runs=3, warm=2)
        found[f"3d_fp32_{name}_tflops"] = deep / seconds / 1e12
    found["tf32_in_convolutions"] = bool(torch.backends.cudnn.allow_tf32)
    return found


def attentions(bench: Bench) -> dict[str, Any]:
    """Attention of all tokens of Wan2.2 at 1280×704×121 over all, by each kernel that takes it."""
    heads, tokens, width = (2, 64, 16) if bench.tiny else (24, 27_280, 128)
    dtype = torch.float32 if bench.tiny else torch.bfloat16
    query, key, value = (torch.randn(1, heads, tokens, width, device=bench.torch_device).to(dtype) for _ in range(3))
    operations = 4 * heads * tokens**2 * width
    found: dict[str, Any] = {}
    for name, kernel in (
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("math", SDPBackend.MATH),
    ):
        if name == "math" and not bench.tiny:
            continue  # it writes out all pairs of tokens
        try:
            with sdpa_kernel(kernel):
                seconds = bench.seconds(lambda: functional.scaled_dot_product_attention(query, key, value))
        except RuntimeError as error:
            found[name] = " ".join(str(error).split())[:120]
            continue
        found[f"{name}_tflops"] = operations / seconds / 1e12
    return found
