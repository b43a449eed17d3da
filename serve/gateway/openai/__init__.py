"""What clients of OpenAI's API speak, in the field names of vLLM-Omni where OpenAI has none: videos, files, models."""
