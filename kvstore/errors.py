"""The exceptions of this folder."""


class StoreError(OSError):
    """Keys and values cannot be stored or read back."""


class SessionError(StoreError):
    """A session folder is damaged, or is not one that this version or this model can use."""


class PagesError(SessionError):
    """Keys and values of a session are damaged; its tokens, from which they can be computed again,
    are not."""
