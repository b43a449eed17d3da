"""What a clip is: its specification, the still and the prompt it comes from, the files that people get."""
