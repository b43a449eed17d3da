"""Help with rows before they are rendered: templates of prompts, and what is to be said of a row."""
