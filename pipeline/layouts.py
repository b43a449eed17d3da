"""Layout: how a clip's work is laid out in memory, one independent switch per stage."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Layout(BaseModel):
    """Switches that trade time for memory. All are exact: the same algebra in another order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Encode: the encoders are on the card only while they encode, and the denoiser only while they do not.
    evict_encoders: bool = False
    #: Denoise: run the conditional and unconditional halves of guidance one after the other.
    split_guidance: bool = False
    #: Decode: frames decoded together by the VAE.
    decode_frames: int = Field(default=1, ge=1)

    def __str__(self) -> str:
        guidance = "split" if self.split_guidance else "batched"
        encoders = "evicted" if self.evict_encoders else "resident"
        return f"encoders={encoders} guidance={guidance} decode={self.decode_frames}"


#: The fastest layout of every family so far: guidance batched, one frame decoded at a time (the same
#: speed as several on real cards, at a fraction of the memory).
RESIDENT = Layout()
