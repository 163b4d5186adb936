"""Every way to get a flow file wrong is told with its place, the wrong value and the nearest right one."""

# ruff: noqa: E501 -- what is told stands here as it is told, in one piece

from __future__ import annotations

import pytest

# name -> (the file, the lines that are told)
NOT_YAML = {
    "an empty file": ("", ["flow.yaml:1:1: the file is empty; a flow needs `modules:`"]),
    "only a comment": ("# nothing\n", ["flow.yaml:1:1: the file is empty; a flow needs `modules:`"]),
    "a list": ("- a\n", ["flow.yaml:1:1: a flow file is a mapping that begins with `flow:` and `modules:`"]),
    "a word": ("flow\n", ["flow.yaml:1:1: a flow file is a mapping that begins with `flow:` and `modules:`"]),
    "two documents": ("a: 1\n---\nb: 1\n", ["flow.yaml:2:1: a second document begins here; a flow file holds one"]),
    "a tab": (
        "modules:\n\ta: 1\n",
        [
            "flow.yaml:2:1: this is not YAML: while scanning for the next token, found character that cannot start any "
            "token; indent with spaces, not tabs"
        ],
    ),
    "a colon in a value": (
        "flow: a: b\n",
        [
            "flow.yaml:1:8: this is not YAML: mapping values are not allowed in this context; if the value holds ': ', "
            "write it in quotes"
        ],
    ),
    "an @ in front": (
        "flow: @a\n",
        [
            "flow.yaml:1:7: this is not YAML: while scanning for the next token, found character that cannot start any "
            "token; write the value in quotes"
        ],
    ),
    "a bare variable in braces": (
        "modules: {a: ${A}, b: 1}\n",
        [
            "flow.yaml:1:15: this is not YAML: while parsing a flow mapping, did not find expected ',' or '}'; "
            "between { and }, write a value with ${...} in quotes"
        ],
    ),
    "a tag": (
        "modules: !!python/object:os.system {}\n",
        [
            "flow.yaml:1:10: the tag '!!python/object:os.system' is not understood: a flow file has plain values only",
        ],
    ),
    "an unknown alias": ("flow: *a\n", ["flow.yaml:1:7: flow: *a is the alias of nothing above it"]),
    "an alias inside itself": (
        "modules: &a {b: *a}\n",
        ["flow.yaml:1:17: modules.b: *a stands inside what it is an alias of"],
    ),
    "a list as a key": (
        "{[a]: 1}\n",
        ["flow.yaml:1:2: a key must be a plain word, not a mapping or a list"],
    ),
    "nested braces": ("a: " + "{b: " * 10_000, ["flow.yaml:1:400: nested deeper than 100 levels"]),
    "nested brackets": ("[" * 10_000, ["flow.yaml:1:101: nested deeper than 100 levels"]),
    "nested dashes": ("- " * 10_000 + "x", ["flow.yaml:1:201: nested deeper than 100 levels"]),
    "aliases of aliases": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in ("ab", "bc", "cd", "de", "ef")),
        ["flow.yaml:5:4: with its aliases written out this holds more than 100,000 values"],
    ),
    "a merge of a word": (
        "modules: {a: {<<: x}}\n",
        ["flow.yaml:1:19: modules.a: << takes a mapping or a list of mappings"],
    ),
}


@pytest.mark.parametrize("name", NOT_YAML)
def test_what_is_not_yaml_for_us_is_told_in_one_line(problems, name):
    text, expected = NOT_YAML[name]
    assert problems(text) == expected


FILES = {
    "no modules": ("flow: a\n", ["flow.yaml:1:1: modules: the flow has no modules"]),
    "empty modules": ("modules: {}\n", ["flow.yaml:1:10: modules: the flow has no modules"]),
    "modules in a list": (
        "modules: [a, b]\n",
        ["flow.yaml:1:10: modules: expected a mapping from names to modules"],
    ),
    "an unknown top key": (
        "modules: {a: 'shop:numbers'}\nroute: []\n",
        ["flow.yaml:2:1: route: there is no 'route' in a flow file, did you mean 'routes'?"],
    ),
    "a wrong ttl": (
        "modules: {a: 'shop:numbers'}\nttl: many\n",
        ["flow.yaml:2:6: ttl: expected a whole number, not a string (given many)"],
    ),
    "a ttl of 0": (
        "modules: {a: 'shop:numbers'}\nttl: 0\n",
        ["flow.yaml:2:6: ttl: ttl must be 1 or more (given 0)"],
    ),
    "an unknown dead letter": (
        "modules: {a: 'shop:numbers', dead: 'shop:sink'}\ndead_letter: ded\n",
        ["flow.yaml:2:14: dead_letter: there is no module 'ded', did you mean 'dead'?"],
    ),
    "a name that is none": (
        "modules:\n  a b: shop:numbers\n",
        ["flow.yaml:2:3: modules.a b: 'a b' is not a name: use letters, digits, '_', '-' and '/'"],
    ),
    "a number for a name": (
        "modules:\n  1: shop:numbers\n",
        ["flow.yaml:2:3: modules.1: 1 is not a name: write it in quotes, beginning with a letter"],
    ),
    "a key twice": (
        "modules:\n  a: shop:numbers\n  a: shop:letters\n",
        ["flow.yaml:3:3: modules.a: 'a' stands here twice; first in line 2"],
    ),
    "a module that is a number": (
        "modules:\n  a: 4\n",
        [
            "flow.yaml:2:6: modules.a: expected the kind of a module, or a mapping with use, map, filter or flat_map",
        ],
    ),
    "a module that is nothing": (
        "modules:\n  a:\n",
        [
            "flow.yaml:2:5: modules.a: expected the kind of a module, or a mapping with use, map, filter or flat_map",
        ],
    ),
    "a module without use": (
        "modules:\n  a: {with: {b: 1}}\n",
        ["flow.yaml:2:6: modules.a: a module has exactly one of use, map, filter and flat_map"],
    ),
    "a module with two": (
        "modules:\n  a: {use: 'shop:sink', map: 'shop:double'}\n",
        [
            "flow.yaml:2:6: modules.a: a module has exactly one of use, map, filter and flat_map, not use and map",
        ],
    ),
    "an unknown kind": (
        "modules:\n  a: modfy\n",
        ["flow.yaml:2:6: modules.a.use: there is no kind of module 'modfy', did you mean 'modify'?"],
    ),
    "a function written with a dot": (
        "modules:\n  a: shop.double\n",
        ["flow.yaml:2:6: modules.a.use: there is no kind of module 'shop.double'; a function is written 'shop:double'"],
    ),
    "an unknown function": (
        "modules:\n  a: {map: 'shop:duble'}\n",
        ["flow.yaml:2:12: modules.a.map: shop has no 'duble', did you mean 'double'?"],
    ),
    "a name under map": (
        "modules:\n  a: {map: double}\n",
        ["flow.yaml:2:12: modules.a.map: 'double' is not the name of a function; write package.module:name"],
    ),
    "something that is no module": (
        "modules:\n  a: shop:not_a_module\n",
        ["flow.yaml:2:3: modules.a: 7 is not a function or a class"],
    ),
    "an unknown option": (
        "modules:\n  n: shop:numbers\n  a: {map: 'shop:double', concurency: 2}\n",
        ["flow.yaml:3:27: modules.a.concurency: there is no option 'concurency', did you mean 'concurrency'?"],
    ),
    "an argument among the options": (
        "modules:\n  n: shop:numbers\n  a: {use: 'shop:label', text: hello}\n",
        [
            "flow.yaml:3:26: modules.a.text: there is no option 'text'; what the module itself takes stands under with:",
        ],
    ),
    "wrong options, all at once": (
        "modules:\n"
        "  n: shop:numbers\n"
        "  a:\n"
        "    use: shop:send\n"
        "    with: {password: x}\n"
        "    concurrency: many\n"
        "    order: nne\n"
        "    overflow: drop\n"
        "    timeout: 2x\n"
        "    queue: 0\n"
        "    thread: maybe\n"
        "    keep: all\n"
        "    retry: {attempts: five, delay: 1 fortnight, errors: [TimeoutEror], jitter: 2, breaker: {failures: 0}}\n",
        [
            "flow.yaml:6:18: modules.a.concurrency: expected a whole number, not a string (given many)",
            "flow.yaml:7:12: modules.a.order: expected one of kept, none (given nne), did you mean 'none'?",
            "flow.yaml:8:15: modules.a.overflow: expected one of block, drop-newest, drop-oldest, fail (given drop)",
            "flow.yaml:9:14: modules.a.timeout: '2x' is not a duration; write seconds, or '250ms', '2s', '5m', '1h'",
            "flow.yaml:10:12: modules.a.queue: queue must be 1 or more (given 0)",
            "flow.yaml:11:13: modules.a.thread: expected true or false, not a string (given maybe)",
            "flow.yaml:12:11: modules.a.keep: expected original (given all)",
            "flow.yaml:13:23: modules.a.retry.attempts: expected a whole number, not a string (given five)",
            "flow.yaml:13:36: modules.a.retry.delay: '1 fortnight' is not a duration; write seconds, or '250ms', '2s', "
            "'5m', '1h'",
            "flow.yaml:13:57: modules.a.retry.errors: 'TimeoutEror' is not an exception class; write TimeoutError or "
            "package.module:Name",
            "flow.yaml:13:80: modules.a.retry.jitter: jitter must be between 0 and 1 (given 2)",
            "flow.yaml:13:103: modules.a.retry.breaker.failures: failures must be 1 or more (given 0)",
        ],
    ),
    "wrong arguments, all at once": (
        "modules:\n"
        "  n: shop:numbers\n"
        "  a:\n"
        "    use: shop:send\n"
        "    with: {pasword: x, port: five, size: 3 elephants, every: -1, active: 1, rates: {a: 1, b: x}, mode: [1]}\n"
        "  b: {use: 'shop:label', with: {limits: {low: x, heigh: 3}, tags: [a, 1.10]}}\n",
        [
            "flow.yaml:5:11: modules.a.with: the argument 'password' is missing",
            "flow.yaml:5:12: modules.a.with.pasword: there is no argument 'pasword', did you mean 'password'?",
            "flow.yaml:5:30: modules.a.with.port: expected a whole number, not a string (given five)",
            "flow.yaml:5:42: modules.a.with.size: '3 elephants' is not a size; write bytes, or '64kB', '10MB', '1GiB'",
            "flow.yaml:5:62: modules.a.with.every: -1 is not a duration: it must not be negative or endless (given -1)",
            "flow.yaml:5:74: modules.a.with.active: expected true or false, not a whole number (given 1)",
            "flow.yaml:5:94: modules.a.with.rates.b: expected a number, not a string (given x)",
            "flow.yaml:5:104: modules.a.with.mode: expected a whole number or a string (given [1])",
            "flow.yaml:6:47: modules.b.with.limits.low: expected a whole number, not a string (given x)",
            "flow.yaml:6:50: modules.b.with.limits.heigh: there is no field 'heigh', did you mean 'high'?",
            "flow.yaml:6:71: modules.b.with.tags[1]: expected a string, not a number (given 1.10): write '1.10' in quotes",
        ],
    ),
    "with that is a list": (
        "modules:\n  n: shop:numbers\n  a: {use: 'shop:label', with: [text]}\n",
        ["flow.yaml:3:32: modules.a.with: expected a mapping of arguments"],
    ),
    "a missing argument of a class": (
        "modules:\n  n: shop:numbers\n  a: shop:Picky\n",
        ["flow.yaml:3:6: modules.a.with: the argument 'level' is missing"],
    ),
    "arguments for what takes none": (
        "modules:\n  n: shop:rows\n  a: {map: 'shop:double', with: {m: 1}}\n",
        ["flow.yaml:3:34: modules.a.with.m: there is no argument 'm'; it takes none"],
    ),
    "options that do not fit together": (
        "modules:\n  n: {use: 'shop:numbers', timeout: 1s}\n  a: {map: 'shop:double', timeout: 1s, concurrency: 2}\n",
        [
            "flow.yaml:2:37: modules.n.timeout: n is a plain function and cannot be interrupted: a timeout needs a "
            "coroutine, or thread: true",
            "flow.yaml:2:37: modules.n.timeout: n is a source; timeout is for modules with an inbox",
            "flow.yaml:3:36: modules.a.timeout: a is a plain function and cannot be interrupted: a timeout needs a "
            "coroutine, or thread: true",
            "flow.yaml:3:53: modules.a.concurrency: a is a plain function and never waits: concurrency above 1 needs "
            "a coroutine, or thread: true",
        ],
    ),
    "routes in a mapping": (
        "modules: {n: 'shop:numbers'}\nroutes: {a: b}\n",
        ["flow.yaml:2:9: routes: expected a list of routes: - a -> b"],
    ),
    "routes to nowhere": (
        "modules: {numbers: 'shop:numbers', a: 'shop:sink'}\n"
        "routes:\n"
        "  - numbrs -> a\n"
        "  - numbers -> b\n"
        "  - numbers -> a.side\n"
        "  - a -> numbers\n",
        [
            "flow.yaml:3:5: routes[0]: numbrs -> a: there is no module 'numbrs', did you mean 'numbers'?",
            "flow.yaml:4:5: routes[1]: numbers -> b: there is no module 'b'",
            "flow.yaml:5:5: routes[2]: numbers -> a.side: a has no inbox 'side'; it has inbox",
            "flow.yaml:6:5: routes[3]: a -> numbers: numbers is a source and has no inbox",
        ],
    ),
    "routes that are none": (
        "modules: {n: 'shop:numbers', a: 'shop:sink'}\n"
        "routes:\n"
        "  - n -> a\n"
        "  - n a\n"
        "  - 4\n"
        "  - n ->\n"
        "  - {from: n, too: a}\n"
        "  - {from: n, to: a, branch: best, queue: x}\n",
        [
            "flow.yaml:4:5: routes[1]: 'n a' is not a route; write 'a -> b'",
            "flow.yaml:5:5: routes[2]: expected a route: 'a -> b', or {from: a, to: b}",
            "flow.yaml:6:5: routes[3]: 'n ->': an end is missing",
            "flow.yaml:7:5: routes[4]: the key 'to' is missing",
            "flow.yaml:7:15: routes[4].too: there is no key 'too', did you mean 'to'?",
            "flow.yaml:8:30: routes[5].branch: expected one of required, best-effort (given best)",
            "flow.yaml:8:43: routes[5].queue: expected a whole number, not a string (given x)",
        ],
    ),
    "the same route twice, in a chain": (
        "modules: {n: 'shop:numbers', a: {map: 'shop:double'}, b: 'shop:sink'}\nroutes:\n  - n -> a -> b\n  - a -> b\n",
        ["flow.yaml:4:5: routes[1]: a -> b: the same route stands at routes[0]"],
    ),
    "an unfed module": (
        "modules:\n  n: shop:numbers\n  a: shop:sink\n  b: shop:sink\nroutes: [n -> a]\n",
        ["flow.yaml:4:3: modules.b: nobody feeds b: no route leads to it"],
    ),
    "an endless cycle": (
        "modules: {n: 'shop:numbers', a: {map: 'shop:double'}, b: {map: 'shop:double'}}\n"
        "routes:\n  - n -> a -> b\n  - b -> a\n",
        [
            "flow.yaml:4:5: routes: the cycle a -> b -> a has no limit: give the route back a ttl (how many turns an "
            "event may make), or the whole flow one"
        ],
    ),
    "an unknown outbox of a class": (
        "modules:\n"
        "  n: shop:numbers\n"
        "  a: {use: 'shop:Picky', with: {level: 1}}\n"
        "  b: shop:sink\n"
        "routes:\n"
        "  - n -> a -> b\n"
        "  - a.othr -> b\n",
        ["flow.yaml:7:5: routes[1]: a.othr -> b: a has no outbox 'othr', did you mean 'other'?"],
    ),
    "an outbox of a function of bare data": (
        "modules:\n"
        "  n: shop:numbers\n"
        "  a: {map: 'shop:double'}\n"
        "  b: {filter: 'shop:is_even'}\n"
        "  c: {flat_map: 'shop:repeat'}\n"
        "  d: shop:sink\n"
        "routes:\n"
        "  - n -> a\n"
        "  - a.oubox -> b\n"
        "  - b.faild -> d\n"
        "  - c.others -> d\n"
        "  - n -> c\n"
        "  - a -> d\n",
        [
            "flow.yaml:9:5: routes[1]: a.oubox -> b: a has no outbox 'oubox', did you mean 'outbox'?",
            "flow.yaml:10:5: routes[2]: b.faild -> d: b has no outbox 'faild', did you mean 'failed'?",
            "flow.yaml:11:5: routes[3]: c.others -> d: c has no outbox 'others'; it has expired, failed, outbox",
        ],
    ),
    "a key that is no path": (
        "modules:\n  n: shop:numbers\n  a: {use: 'shop:label', key: dta.customer}\n",
        [
            "flow.yaml:3:31: modules.a.key: key must be a path: 'dta': a path begins with one of created, data, "
            "failures, headers, id, key, parent, scratch, tags, ttl (given dta.customer)"
        ],
    ),
    "a chain that cannot be": (
        "modules:\n  a: shop:numbers\n  b: shop:letters\n",
        ["flow.yaml:3:3: modules.b: a -> b: b is a source and has no inbox"],
    ),
    "an unknown flow file": (
        "modules:\n  n: shop:numbers\n  a: {use: ./other.yaml}\n",
        ["flow.yaml:3:12: modules.a.use: ./other.yaml cannot be read: No such file or directory"],
    ),
    "a broken module does not make its routes wrong": (
        "modules: {n: 'shop:numbers', a: {map: 'shop:nope'}, b: 'shop:sink'}\nroutes: [n -> a.side -> b]\n",
        ["flow.yaml:1:39: modules.a.map: shop has no 'nope'"],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_every_problem_of_a_file_is_told_with_its_place(problems, name):
    text, expected = FILES[name]
    assert problems(text) == expected


TRAPS = {
    "no, for a string": ("text: no", 39, "text", "YAML reads a bare no as false: write 'no' in quotes"),
    "On, for a string": ("text: On", 39, "text", "YAML reads a bare On as true: write 'On' in quotes"),
    "a time": ("text: 22:30", 39, "text", "YAML reads 22:30 as a number in base 60: write '22:30' in quotes"),
    "a date": ("text: 2024-01-31", 39, "text", "YAML reads 2024-01-31 as a date: write '2024-01-31' in quotes"),
    "a leading zero": (
        "text: 010",
        39,
        "text",
        "some readers take 010 for an octal number, others for 10: write '010' in quotes, or the number without the "
        "leading 0",
    ),
    "yes, in a list": ("tags: [yes]", 40, "tags[0]", "YAML reads a bare yes as true: write 'yes' in quotes"),
    "a number, for a string": ("text: 12", 39, "text", "expected a string, not a whole number (given 12): write '12' in quotes"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_what_yaml_1_1_would_misread_is_told_and_not_swallowed(problems, name):
    argument, column, path, message = TRAPS[name]
    found = problems(f"modules:\n  n: shop:numbers\n  a: {{use: 'shop:label', with: {{{argument}}}}}\n")
    assert found == [f"flow.yaml:3:{column}: modules.a.with.{path}: {message}"]


def test_an_old_boolean_is_welcome_where_a_boolean_is_expected(problems):
    assert (
        problems("modules:\n  n: shop:numbers\n  a: {use: 'shop:send', thread: no, with: {password: x, active: yes}}")
        == []
    )


def test_an_old_boolean_is_told_where_anything_may_stand(problems):
    found = problems("modules:\n  n: shop:numbers\n  a: {use: 'shop:open_ended', with: {where: {in: [off]}}}\n")
    assert found == [
        "flow.yaml:3:51: modules.a.with.where.in[0]: YAML reads a bare off as false: write 'off' in quotes"
    ]


def test_an_old_boolean_as_a_name_is_told(problems):
    found = problems("modules:\n  n: shop:numbers\n  on: shop:sink\n")
    assert found == ["flow.yaml:3:3: modules: YAML reads a bare on as true: write 'on' in quotes"]


def test_bytes_that_are_not_utf8_are_told_with_their_place(tmp_path):
    from furcula.config import load
    from furcula.errors import ConfigurationError

    file = tmp_path / "flow.yaml"
    file.write_bytes(b"flow: a\nmodules: {b\xff: 1}\n")
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert str(caught.value) == f"{file}:2:12: the file is not UTF-8 text (byte 0xff)"


def test_a_missing_file_is_told_with_the_nearest_one(tmp_path):
    from furcula.config import load
    from furcula.errors import ConfigurationError

    (tmp_path / "flow.yaml").write_text("")
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path / "flw.yaml")
    expected = f"{tmp_path}/flw.yaml: cannot be read: No such file or directory, did you mean 'flow.yaml'?"
    assert str(caught.value) == expected


def test_control_characters_are_told(problems):
    assert problems("flow: a\x00b\n")[0].startswith("flow.yaml")
