"""Frames decoded tile by tile: a decoder's activations grow with what it decodes at once, the blended frame hardly.

Not diffusers' `tiled_decode`: `AutoencoderKLTemporalDecoder` has none, `AutoencoderKLWan`'s keeps all tiles of all
frames on the card and clamps what overflowed, and both cut the last tiles of a row short, which a decoder with norms
over the whole tile shows. Here all tiles are of one size, and one frame, or one chunk of frames, is on the card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from pipeline.families.layouts import Layout
from pipeline.memory.tiles import tile_spans, tile_weights


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of a frame: where it is in latents and in pixels, and what it counts for there."""

    latent_rows: slice
    latent_columns: slice
    rows: slice
    columns: slice
    #: (height, 1) and (width), of pixels; their product over all tiles adds up to 1 everywhere.
    row_weights: torch.Tensor
    column_weights: torch.Tensor

    def weigh(self, pixels: torch.Tensor) -> torch.Tensor:
        """(…, height, width) of this tile times its weights, in place where it is no half precision."""
        wide = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        return wide.mul_(self.row_weights).mul_(self.column_weights)


def tiles_of(height: int, width: int, layout: Layout, scale: int, like: torch.Tensor) -> Iterator[Tile]:
    """Tiles of a frame of `height` × `width` latent pixels, each `scale` pixels a side, row by row.

    Weights lie on the device of `like`, as precise as it is, and in float32 at least.
    """
    side, overlap = layout.decode_tile, layout.decode_overlap
    dtype = torch.promote_types(like.dtype, torch.float32)

    def along(length: int) -> list[tuple[slice, slice, torch.Tensor]]:
        weights = tile_weights(length, side, overlap, scale)
        return [
            (slice(first, end), slice(scale * first, scale * end), torch.tensor(of, dtype=dtype).to(like.device))
            for (first, end), of in zip(tile_spans(length, side, overlap), weights, strict=True)
        ]

    columns = along(width)
    for latent_rows, rows, row_weights in along(height):
        for latent_columns, pixel_columns, column_weights in columns:
            yield Tile(
                latent_rows=latent_rows,
                latent_columns=latent_columns,
                rows=rows,
                columns=pixel_columns,
                row_weights=row_weights.unsqueeze(1),
                column_weights=column_weights,
            )


def is_tiled(latents: torch.Tensor, layout: Layout) -> bool:
    """Whether `latents` (…, height, width) are larger than a tile of `layout`."""
    return 0 < layout.decode_tile < max(latents.shape[-2:])


def decode_in_tiles(
    latents: torch.Tensor, decode: Callable[[torch.Tensor], torch.Tensor], layout: Layout, scale: int
) -> torch.Tensor:
    """(frames, 3, height × scale, width × scale) of (frames, channels, height, width): whole, or blended from tiles."""
    if not is_tiled(latents, layout):
        return decode(latents)
    frames, _, height, width = latents.shape
    dtype = torch.promote_types(latents.dtype, torch.float32)
    blended = torch.zeros(frames, 3, height * scale, width * scale, dtype=dtype, device=latents.device)
    for tile in tiles_of(height, width, layout, scale, latents):
        part = decode(latents[..., tile.latent_rows, tile.latent_columns])
        blended[..., tile.rows, tile.columns].add_(tile.weigh(part))
        del part
    return blended
