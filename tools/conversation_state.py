"""What a saved conversation is besides its tokens, as JSON: turns, both id lists, random state.

The ids that the model saw are the session's own tokens wherever they can be; only where the
template rewrote the past are they stored once more.
"""

import msgspec

from hga.kvstore.errors import SessionError
from hga.tools.turns import Turn


class SavedTurn(msgspec.Struct, forbid_unknown_fields=True):
    """See turns.Turn."""

    user: str
    reply: str
    n_canonical: int
    n_actual: int
    epoch: int

    @classmethod
    def of(cls, turn: Turn) -> "SavedTurn":
        """The stored form of a turn."""
        return cls(turn.user, turn.reply, turn.n_canonical, turn.n_actual, turn.epoch)

    def turn(self) -> Turn:
        """The turn."""
        return Turn(self.user, self.reply, self.n_canonical, self.n_actual, self.epoch)


class State(msgspec.Struct, forbid_unknown_fields=True):
    """canonical: None, as the ids that the model saw; actual: None, the session's first n_actual
    tokens. The random numbers are those of sampler.Sampler."""

    chat: bool
    system: str | None
    epoch: int
    turns: list[SavedTurn]
    canonical: list[int] | None
    n_actual: int
    actual: list[int] | None
    seed: int
    random_state: str
    random_increment: str


def encode(state: State) -> str:
    """The text to store."""
    return msgspec.json.encode(state).decode()


def decode(text: str, n_tokens: int, vocab_size: int) -> State:
    """The state in a stored text about a session of n_tokens; SessionError unless all of it fits
    together."""
    try:
        state = msgspec.json.decode(text, type=State)
        randoms = [int(state.random_state, 16), int(state.random_increment, 16)]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise SessionError(
            "the conversation of the session cannot be read: it is damaged"
        ) from None
    ids = [*(state.canonical or []), *(state.actual or [])]
    n_canonical = state.n_actual if state.canonical is None else len(state.canonical)
    n_most = n_tokens if state.actual is None else len(state.actual)
    fits = (
        0 <= state.n_actual <= n_most
        and all(0 <= i < vocab_size for i in ids)
        and 0 <= state.seed < 1 << 64
        and all(0 <= number < 1 << 128 for number in randoms)
        and randoms[1] % 2 == 1
        and all(
            turn.epoch != state.epoch
            or (0 <= turn.n_canonical <= n_canonical and 0 <= turn.n_actual <= state.n_actual)
            for turn in state.turns
        )
    )
    if not fits:
        raise SessionError("the conversation does not fit the session's tokens: it is damaged")
    return state


def tokens_before(state: State, n_turns: int) -> int | None:
    """Tokens of the session that the first n_turns take; None where it cannot be told: the
    template rewrote the past since."""
    if n_turns == len(state.turns):
        return state.n_actual if state.actual is None else None
    turn = state.turns[n_turns]
    return turn.n_actual if turn.epoch == state.epoch and state.actual is None else None


def first_turns(state: State, n_turns: int) -> State:
    """The state after the first n_turns, which is fewer than there are."""
    turn = state.turns[n_turns]
    canonical = None if state.canonical is None else state.canonical[: turn.n_canonical]
    return msgspec.structs.replace(
        state, turns=state.turns[:n_turns], canonical=canonical, n_actual=turn.n_actual
    )
