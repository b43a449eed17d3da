"""Prompts judged before a card spends time on them: what they lack, and how they would better be written."""
