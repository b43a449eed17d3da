"""Who may ask the farm for what: scopes, keys as texts and as the store has them, and quotas of owners."""
