"""A still at the size at which it is judged, and what several judgements need of it, computed once."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from pipeline.clips.inspection.product import ProductArea, product_area

Grey = NDArray[np.float32]

#: Longest side, in pixels, at which a still is judged: about what the smaller classes show of it.
JUDGED_SIDE = 512


class StillView:
    """An upright RGB still for judging, of `JUDGED_SIDE` pixels a side at most."""

    def __init__(self, still: Image.Image) -> None:
        """`still`: RGB, of any size; it is reduced by averaging, never enlarged."""
        if (scale := JUDGED_SIDE / max(still.size)) < 1:
            size = (max(1, round(still.width * scale)), max(1, round(still.height * scale)))
            still = still.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
        #: The picture at that size.
        self.image = still

    @cached_property
    def pixels(self) -> NDArray[np.float32]:
        """Levels from 0 to 255, (height, width, 3)."""
        return np.asarray(self.image, np.float32)

    @cached_property
    def luma(self) -> Image.Image:
        """Luma (ITU-R BT.601) as a grey picture of 8 bits."""
        return self.image.convert("L")

    @cached_property
    def grey(self) -> Grey:
        """Luma from 0 to 255, (height, width)."""
        return np.asarray(self.luma, np.float32)

    @cached_property
    def brightest(self) -> Image.Image:
        """The brightest channel of each pixel, as a grey picture of 8 bits."""
        red, green, blue = self.image.split()
        return ImageChops.lighter(ImageChops.lighter(red, green), blue)

    @cached_property
    def area(self) -> ProductArea:
        """Where the product is."""
        return product_area(self.image)
