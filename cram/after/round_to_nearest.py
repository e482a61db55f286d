"""Fewer bits a number: rounding to the nearest of 2^b levels, group by group.

A group of contiguous numbers shares a ``scale`` and a ``low``, and x is kept as code = round((x - low) / scale), a whole
number of b bits; read back, it is low + scale * code, at most scale / 2 away. Asymmetric, the default: low and high of a
group are its least and greatest number (FlexGen, Sheng et al. 2023, section 4). Symmetric: the levels lie around zero,
which one of them is. Scales and lows are float16 and count among the bits: 32 bits a group, half a bit a number at 64.

Axes: C numbers side by side in C / g groups of g, in front of them any others (``...``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cram.errors import CramError

HALF = torch.finfo(torch.float16)


class Levels(NamedTuple):
    """What the codes of a group mean: low + scale * code; float16 [..., C / g] each."""

    scale: Tensor
    low: Tensor


def find_levels(x: Tensor, bits: int, group: int, symmetric: bool = False) -> Levels:
    """The levels of x [..., C], whose groups are ``group`` numbers. A group of equal numbers has scale 0.

    Raises CramError when C is no multiple of the group, or a number does not fit float16.
    """
    if x.shape[-1] % group:
        raise CramError(f"{x.shape[-1]} inputs do not divide into groups of {group}; set quantize.group to a divisor")
    grouped = x.unflatten(-1, (-1, group)).float()
    top = 2**bits - 1
    if symmetric:
        scale = _half(grouped.abs().amax(-1) / (top // 2))
        return Levels(scale, -scale * (top // 2 + 1))
    low = _half(grouped.amin(-1))
    return Levels(_half((grouped.amax(-1) - low.float()) / top), low)


def _half(x: Tensor) -> Tensor:
    if not (x.abs() <= HALF.max).all():
        raise CramError("a number is not finite or beyond float16's 65,504: the model's weights or keys have exploded")
    return x.half()


def encode(x: Tensor, levels: Levels, bits: int) -> Tensor:
    """Codes uint8 [..., C] of x [..., C]."""
    scale, low = (part.to(x.dtype)[..., None] for part in levels)
    grouped = x.unflatten(-1, (levels.scale.shape[-1], -1))
    return ((grouped - low) / torch.where(scale == 0, 1, scale)).round_().clamp_(0, 2**bits - 1).byte().flatten(-2)


def decode(codes: Tensor, levels: Levels, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers [..., C] that codes uint8 [..., C] stand for."""
    scale, low = (part.to(dtype)[..., None] for part in levels)
    return (codes.unflatten(-1, (scale.shape[-2], -1)) * scale).add_(low).flatten(-2)


def round_trip(x: Tensor, bits: int, group: int) -> Tensor:
    """x [..., C] as it comes back from its codes."""
    levels = find_levels(x, bits, group)
    return decode(encode(x, levels, bits), levels, x.dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., C] below 2^bits in bytes, uint8 [..., C bits / 8]: two a byte at 4 bits, eight in three at 3.

    Raises CramError when C codes are no whole number of bytes.
    """
    if bits == 8:
        return codes
    if bits == 4 and codes.shape[-1] % 2 == 0:
        return codes[..., 0::2] | codes[..., 1::2] << 4
    if codes.shape[-1] % 8:
        raise CramError(f"{codes.shape[-1]} codes of {bits} bits do not fill whole bytes; a multiple of 8 does")
    shift = torch.arange(8, device=codes.device) * bits
    words = (codes.unflatten(-1, (-1, 8)).long() << shift).sum(-1, keepdim=True)
    return (words >> torch.arange(bits, device=codes.device) * 8 & 255).byte().flatten(-2)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The codes that ``pack`` packed."""
    if bits == 8:
        return packed
    if bits == 4:
        return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)
    words = (packed.unflatten(-1, (-1, bits)).long() << torch.arange(bits, device=packed.device) * 8).sum(-1, keepdim=True)
    return (words >> torch.arange(8, device=packed.device) * bits & 2**bits - 1).byte().flatten(-2)
