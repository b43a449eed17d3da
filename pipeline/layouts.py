"""Layout: how a clip's work is laid out in memory, one independent switch per stage."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Layout(BaseModel):
    """Switches that trade time for memory. They are exact, the same algebra in another order, but for one thing:
    a decoder that mixes the frames it decodes together makes another picture of another `decode_frames`.
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

    @property
    def denoise_switches(self) -> str:
        """The switches that change what a denoising step takes, such as `batched` or `split ff8`."""
        guidance = "split" if self.split_guidance else "batched"
        return guidance + (f" ff{self.chunk_feed_forward}" if self.chunk_feed_forward > 1 else "")

    def __str__(self) -> str:
        guidance = "split" if self.split_guidance else "batched"
        encoders = "evicted" if self.evict_encoders else "resident"
        chunks = f" feed-forward={self.chunk_feed_forward}" if self.chunk_feed_forward > 1 else ""
        denoiser = " denoiser=evicted" if self.evict_denoiser else ""
        denoiser += " weights=streamed" if self.stream_weights else ""
        return f"encoders={encoders} guidance={guidance}{chunks}{denoiser} decode={self.decode_frames}"


#: The fastest layout of every family so far: guidance batched, one frame decoded at a time (the same
#: speed as several on real cards, at a fraction of the memory).
RESIDENT = Layout()
