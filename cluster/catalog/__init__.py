"""From a table of pictures to drafts of jobs: read, checked, resolved to final specifications."""
