"""What is told to whoever registered a URL, how it is signed, and when it is tried again."""
