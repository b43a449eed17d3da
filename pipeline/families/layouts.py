"""Layout: how a clip's work is laid out in memory, one independent switch per stage."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Layout(BaseModel):
    """Switches that trade time for memory. They are exact, the same algebra in another order, but for three things:
    a decoder that mixes the frames it decodes together makes another picture of another `decode_frames`, one that
    looks at a whole frame (by its norms and its attention) makes slightly another of tiles, and one that computes in
    half precision rounds coarsely. The last two are *lossy* (`lossy` names them).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Encode: the encoders are on the card only while they encode, and the denoiser only while they do not.
    evict_encoders: bool = False
    #: Decode: the denoiser is off the card meanwhile.
    evict_denoiser: bool = False
    #: Denoise: run the conditional and unconditional halves of guidance one after the other.
    split_guidance: bool = False
    #: Denoise: parts that feed-forward layers do their tokens in, one after the other; 1: all at once.
    chunk_feed_forward: int = Field(default=1, ge=1)
    #: Encode and denoise: weights are on the card only while their layer computes, copied for every evaluation.
    stream_weights: bool = False
    #: Decode: frames decoded together by the VAE, where the family's decoder leaves the choice.
    decode_frames: int = Field(default=1, ge=1)
    #: Decode: side of the tiles that a frame is decoded in, one after the other, in latent pixels; 0: the whole frame.
    #: Not exact.
    decode_tile: int = Field(default=0, ge=0)
    #: Latent pixels that neighbouring tiles share at least; what they make of them is blended.
    decode_overlap: int = Field(default=0, ge=0)
    #: Decode: by networks in the family's half precision where they compute in float32 otherwise. Not exact.
    decode_half: bool = False

    @model_validator(mode="after")
    def _tiles_move_on(self) -> Self:
        if self.decode_overlap and self.decode_overlap >= self.decode_tile:
            raise ValueError(f"tiles of {self.decode_tile} latent pixels cannot share {self.decode_overlap}")
        return self

    @property
    def denoise_switches(self) -> str:
        """The switches that change what a denoising step takes, such as `batched` or `split ff8`."""
        guidance = "split" if self.split_guidance else "batched"
        return guidance + (f" ff{self.chunk_feed_forward}" if self.chunk_feed_forward > 1 else "")

    @property
    def lossy(self) -> tuple[str, ...]:
        """What of it changes the picture, in words; empty for an exact layout."""
        words = (
            "frames decoded in half precision" if self.decode_half else "",
            "frames decoded in tiles" if self.decode_tile else "",
        )
        return tuple(filter(None, words))

    @property
    def brief(self) -> str:
        """The switches that are on, such as `split ff8 streamed`; `batched` where none is."""
        words = [
            "encoders evicted" if self.evict_encoders else "",
            "denoiser evicted" if self.evict_denoiser else "",
            self.denoise_switches,
            "streamed" if self.stream_weights else "",
            "decoder in half" if self.decode_half else "",
            f"tiles {self.decode_tile}" if self.decode_tile else "",
        ]
        return ", ".join(filter(None, words))

    def __str__(self) -> str:
        guidance = "split" if self.split_guidance else "batched"
        encoders = "evicted" if self.evict_encoders else "resident"
        chunks = f" feed-forward={self.chunk_feed_forward}" if self.chunk_feed_forward > 1 else ""
        denoiser = " denoiser=evicted" if self.evict_denoiser else ""
        denoiser += " weights=streamed" if self.stream_weights else ""
        lossy = " decoder=half" if self.decode_half else ""
        lossy += f" tiles={self.decode_tile}-{self.decode_overlap}" if self.decode_tile else ""
        return f"encoders={encoders} guidance={guidance}{chunks}{denoiser} decode={self.decode_frames}{lossy}"


#: The fastest layout of every family so far: guidance batched, one frame decoded at a time (the same
#: speed as several on real cards, at a fraction of the memory).
RESIDENT = Layout()
