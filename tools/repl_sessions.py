"""The REPL's commands about saved conversations: /save, /load, /list."""

from typing import TYPE_CHECKING

from hga.tools.errors import UsageError
from hga.tools.sessions import look_all, table

if TYPE_CHECKING:
    from hga.tools.repl_commands import Context


def save(context: "Context", rest: str) -> None:
    """/save NAME: keep the conversation under a name, and every later reply."""
    talk = context.talk
    session = talk.conversation.session
    if session.saved is not None and rest in ("", session.saved.name):
        talk.save()
    elif not rest:
        raise UsageError("/save NAME: under which name?")
    else:
        new = talk.engine.save_as(session, rest, talk.conversation.note())
        if new is not session:
            talk.conversation.session = new
            session.close()
        session = new
        for notice in session.saved.notices if session.saved else ():
            context.status.notice(notice)
    saved = session.saved
    assert saved is not None
    context.status.say(
        f"session {saved.name!r}: {len(session.tokens):,} tokens are saved in {saved.folder}, and "
        "every reply from now on"
    )


def load(context: "Context", rest: str) -> None:
    """/load NAME: go on with a saved conversation."""
    from hga.tools.run import resume

    talk = context.talk
    old = talk.conversation
    saved = old.session.saved
    if not rest:
        raise UsageError("/load NAME: which session? (/list shows them)")
    if saved is None and old.n_turns:
        raise UsageError("the conversation has no name yet: /save NAME keeps it, /clear drops it")
    if saved is not None and saved.name == rest:
        raise UsageError(f"session {rest!r} is the one that you are in")
    talk.save()
    session = talk.engine.session(rest, False, old.session.attention, old.session.budget)
    try:
        new = old.over(session)
        context.status.say(resume(new))
    except BaseException:
        session.close()
        raise
    talk.conversation = new
    old.session.close()


def list_all(context: "Context", rest: str) -> None:
    """/list: the saved conversations."""
    root = context.talk.engine.sessions_dir
    found = look_all(root)
    saved = context.talk.conversation.session.saved
    lines = table(found) if found else [f"no sessions in {root}"]
    if saved is not None:
        lines.append(f"this one is {saved.name!r}")
    context.status.say("\n".join(lines))
