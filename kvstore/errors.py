"""The exception of this folder."""


class StoreError(OSError):
    """Keys and values cannot be stored or read back."""
