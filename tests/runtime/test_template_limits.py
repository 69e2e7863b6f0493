"""Hostile templates end soon, in one line, within bounds, and reach nothing."""

import time

import pytest

from hga.runtime.template import ChatTemplate, TemplateError
from hga.runtime.tokenizer import TokenizerError, TokenizerSpec

CAP_S = 0.15


def render(source, messages=({"role": "user", "content": "hi"},), cap_s=CAP_S):
    spec = TokenizerSpec(kind="json", json="", n_vocab=1, pieces="spm", chat_template=source)
    return ChatTemplate(spec, max_render_s=cap_s).render(messages)


def grow(start, step):
    """A template that makes a value from itself sixty times."""
    return (
        "{% set ns = namespace(x=" + start + ") %}{% for i in range(60) %}"
        "{% set ns.x = " + step + " %}{% endfor %}{{ ns.x == ns.x }}"
    )


ENDLESS = {
    "nested loops": "{% for i in range(99999) %}"
    "{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macro": "{% macro m(n) %}{% if n %}"
    "{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(99) }}",
    "recursion": "{% for x in range(9) recursive %}{{ loop(range(99999)) if loop.depth < 4 }}"
    "{% endfor %}",
    "list sums": grow("[1]", "ns.x + ns.x"),
    "nested list": grow("[1]", "[ns.x, ns.x]"),
    "nested tuple": grow("(1,)", "(ns.x, ns.x)"),
    "nested dict": grow("{}", "{'a': ns.x, 'b': ns.x}"),
    "dict call": grow("{}", "dict(a=ns.x, b=ns.x)"),
    "filters": "{% for i in range(10**5) %}{{ range(10**5) | list | sort | length }}{% endfor %}",
}
HUGE = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "repeat": "{{ 'a' * 10**10 }}",
    "repeat from the left": "{{ 10**10 * 'a' }}",
    "list repeat": "{{ ([0] * 10**10) | length }}",
    "power": "{{ 7 ** (10**9) }}",
    "products": grow("3", "ns.x * ns.x"),
    "concatenation": grow("'abc'", "ns.x ~ ns.x"),
    "addition": grow("'abc'", "ns.x + ns.x"),
    "block": "{% set ns = namespace(x='abc') %}{% for i in range(60) %}{% set y %}{{ ns.x }}"
    "{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "many values": "{% for i in range(999) %}{{ ('x' * 4999999) | length }}{% endfor %}",
    "text of a list": "{{ ['x' * 4999999] * 99999 }}",
    "filtered list": "{{ range(99999) | map('replace', '1', 'x' * 999999) | list | length }}",
    "replace": "{{ ('a' * 999999).replace('a', 'x' * 999999) }}",
    "replace filter": "{{ ('a' * 999999) | replace('', 'x' * 999999) }}",
    "join": "{{ ('x' * 999999).join(['a'] * 99999) }}",
    "join filter": "{{ range(99999) | join('x' * 999999) }}",
    "format": "{{ '{:1000000000}'.format('x') }}",
    "format_map": "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
    "printf": "{{ '%1000000000d' % 1 }}",
    "printf star": "{{ '%*d' % (1000000000, 1) }}",
    "printf text": "{{ '%s%s' % ('x' * 4999999, 'x' * 4999999) }}{{ 'x' * 4999999 }}",
    "center": "{{ 'x' | center(10**10) }}",
    "center method": "{{ 'x'.center(10**10) }}",
    "zfill": "{{ 'x'.zfill(10**10) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**10) }}",
    "indent": "{{ 'x\ny' | indent(10**10) }}",
    "indent lines": "{{ ('x\n' * 999999) | indent(64) }}",
    "json indent": "{{ [1] | tojson(indent=10**9) }}",
    "bytes": "{{ (5).to_bytes(10**10, 'big') }}",
    "rounding": "{{ 1.5 | round(10**9) }}",
    "date": "{{ strftime_now('%999999999d') }}",
    "deep recursion": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "deep expression": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "deep blocks": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "long template": "x" * 70_000,
}
FORBIDDEN = {
    "class": "{{ ''.__class__.__mro__ }}",
    "class item": "{{ ''['__class__']['__mro__'] }}",
    "class filter": "{{ (''|attr('__class__')).mro() }}",
    "mapped": "{{ (['']|map(attribute='__class__')|first).mro() }}",
    "globals": "{{ raise_exception.__globals__.os }}",
    "cycler": "{{ cycler.__init__.__globals__.os }}",
    "self": "{{ self.__init__.__globals__ }}",
    "frame": "{{ (messages|map('upper')).gi_frame.f_globals }}",
    "change": "{{ messages.append(1) }}",
    "change dict": "{{ messages[0].update({'role': 'x'}) }}",
    "include": "{% include 'x' %}",
    "import": "{% import 'x' as y %}",
    "extends": "{% extends 'x' %}",
    "object text": "{{ namespace(x=1) }}",
    "generator text": "{{ messages | map('upper') }}",
    "own filter": "{{ 1 | unknown }}",
    "syntax": "{% for %}",
    "types": "{{ None + 'x' }}",
}


@pytest.mark.parametrize("name", sorted(ENDLESS))
def test_endless_work_is_stopped(name):
    begin = time.monotonic()
    with pytest.raises(TemplateError, match=r"took too long|made more than"):
        render(ENDLESS[name])
    assert time.monotonic() - begin < CAP_S + 2.0


@pytest.mark.parametrize("name", sorted(HUGE))
def test_huge_values_are_never_made(name):
    resource = pytest.importorskip("resource", reason="limits and sizes of processes are POSIX's")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.monotonic()
    with pytest.raises(TemplateError) as caught:
        render(HUGE[name], cap_s=2.0)
    assert "\n" not in str(caught.value)
    assert "took too long" not in str(caught.value)
    assert time.monotonic() - begin < 4.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_internals_are_out_of_reach(name):
    with pytest.raises(TemplateError) as caught:
        render(FORBIDDEN[name])
    assert "\n" not in str(caught.value)
    assert "took too long" not in str(caught.value)


def test_the_cap_leaves_room_for_what_messages_say():
    text = "x" * 6_000_000
    messages = [{"role": "user", "content": text}, {"role": "user", "content": text}]
    source = "{% for m in messages %}{{ '<' + m.content | trim + '>' }}{% endfor %}"
    assert len(render(source, messages, cap_s=5.0)) == 12_000_004


def test_raise_exception_is_the_templates_own_message():
    with pytest.raises(TemplateError, match=r"^chat template: no such role$"):
        render("{{ raise_exception('no\n  such role') }}")


def test_a_syntax_error_names_its_line():
    with pytest.raises(TemplateError, match=r"\(line 2\)$"):
        render("a\n{% endfor %}")


def test_templates_keep_what_they_need():
    source = (
        "{% set ns = namespace(n=0) %}{% for m in messages if m.role != 'x' %}"
        "{% set ns.n = ns.n + 1 %}{{ loop.index }}/{{ loop.length }}{{ loop.last }};{% endfor %}"
        "{% for k, v in {'a': [1, 2]}.items() %}{{ k }}{{ v }}{% endfor %}"
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}"
        "{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        "{% macro m(a, b='c') %}[{{ a ~ b ~ 1 }}]{% endmacro %}{{ m('x') }}{{ m('x', b='y') }}"
        "{% generation %}g{% endgeneration %}"
        "{{ 'a,b'.split(',') | join('-') }}{{ '%s=%d' % ('k', 5) }}{{ [1, 2][::-1] }}"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        '{{ {"b": "é<", "a": none} | tojson }}{{ nothing }}{{ "x" if nothing is defined else "y" }}'
        "{{ 'aXb'.replace('X', '-') | upper | replace('-', '+') }}{{ strftime_now('%Y') | length }}"
        "{{ ns.n }}{{ none }}{{ true }}{{ 1.5 }}{{ joiner(',')() }}{{ 7 // 2 }}{{ 2 ** 3 }}"
    )
    assert render(source, cap_s=5.0) == (
        '1/1True;a[1, 2]02[xc1][xy1]ga-bk=5[2, 1]1{"b": "é<", "a": null}yA+B41NoneTrue1.538'
    )


def test_blocks_take_no_line_of_their_own():
    assert render("{% if true %}\n  a\n  {% endif %}\nb\n") == "  a\nb"


def test_long_templates_are_refused_with_the_spec():
    with pytest.raises(TokenizerError, match="chat template"):
        TokenizerSpec.from_dict(
            {
                "kind": "json",
                "json": "{}",
                "n_vocab": 1,
                "pieces": "spm",
                "chat_template": "x" * 70_000,
            }
        )
