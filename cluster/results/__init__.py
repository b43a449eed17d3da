"""Finished clips as people take them home: a folder of files and a contact sheet."""
