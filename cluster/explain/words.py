"""Times of day and layouts as a person reads them. Pure."""

from __future__ import annotations

import time

from pipeline.families.layouts import Layout


def hour_text(at: float, now: float) -> str:
    """`14:05 UTC` in this machine's zone; with the date where that is another day."""
    then = time.localtime(at)
    same_day = then[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M %Z" if same_day else "%Y-%m-%d %H:%M %Z", then)


def layout_text(layout: Layout) -> str:
    """What a layout does, for people who know of no layouts."""
    words = [
        "weights streamed to the card" if layout.stream_weights else "",
        "encoders off the card" if layout.evict_encoders else "",
        "guidance in two halves" if layout.split_guidance else "",
        "chunked feed-forward" if layout.chunk_feed_forward > 1 else "",
        "denoiser off the card while decoding" if layout.evict_denoiser else "",
        "decoding in half precision, which rounds colours slightly" if layout.decode_half else "",
        "decoding in tiles, which may change tones slightly" if layout.decode_tile else "",
    ]
    return ", ".join(filter(None, words)) or "everything at once"
