"""What is said of prompts and rows before they are handed in."""
