"""The rules of the tree, read from its syntax: sizes, names, docstrings, and the table that helps to find things."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("pipeline", "cluster", "serve")
#: Written once, by the schema of their time.
MIGRATIONS = Path("cluster/store/migrations")

MOST_LINES_OF_A_FUNCTION = 80
MOST_LINES_OF_A_CLASS = 350
MOST_LINES_OF_A_FILE = 600
MOST_MODULES_OF_A_FOLDER = 16
#: Folders of one subject, which parts would not make easier to read: modules they may have, and why.
LARGE_FOLDERS = {
    "cluster/store": (26, "every SQL statement; a module is one table or one transaction, and they share the schema"),
    "serve/cli": (26, "commands, each with its options and its output; nobody reads two of them together"),
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@cache
def modules() -> dict[Path, ast.Module]:
    """Every module of the three floors by its path below the root."""
    paths = sorted(path.relative_to(ROOT) for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
    return {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in paths}


def is_migration(path: Path) -> bool:
    return path.is_relative_to(MIGRATIONS)


def definitions(tree: ast.AST) -> Iterator[Definition]:
    for node in ast.walk(tree):
        if isinstance(node, Definition):
            yield node


def lines_of(node: Definition) -> int:
    """Lines of a definition with its decorators."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return (node.end_lineno or first) - first + 1


def too_long(kind: type[ast.ClassDef] | type[Function], most: int) -> list[str]:
    return [
        f"{path}:{node.lineno} {node.name} has {lines_of(node)} lines"
        for path, tree in modules().items()
        if not is_migration(path)
        for node in definitions(tree)
        if isinstance(node, kind) and lines_of(node) > most
    ]


def test_the_floors_are_found():
    assert {path.parts[0] for path in modules()} == set(FLOORS)
    assert len(modules()) > 150


def test_no_function_is_too_long():
    assert too_long(Function, MOST_LINES_OF_A_FUNCTION) == []


def test_no_class_is_too_long():
    assert too_long(ast.ClassDef, MOST_LINES_OF_A_CLASS) == []


def test_no_file_is_too_long():
    lines = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert [f"{path} has {n} lines" for path, n in lines.items() if n > MOST_LINES_OF_A_FILE] == []


def test_no_folder_has_too_many_modules():
    inside: dict[str, int] = defaultdict(int)
    for path in modules():
        if path.name != "__init__.py" and not is_migration(path):
            inside[path.parent.as_posix()] += 1
    most = {folder: LARGE_FOLDERS.get(folder, (MOST_MODULES_OF_A_FOLDER, ""))[0] for folder in inside}
    assert [f"{folder} has {n} modules" for folder, n in inside.items() if n > most[folder]] == []
    unneeded = [folder for folder in LARGE_FOLDERS if inside[folder] <= MOST_MODULES_OF_A_FOLDER]
    assert unneeded == [], "an exception that nothing needs"


def test_names_of_public_classes_are_unique():
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.as_posix())
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


#: One sentence: a full stop stands at its end only, not before a space and a capital.
SENTENCE = re.compile(r"[A-Z`'\"(](?:(?![.!?] [A-Z`]).)*[.!?]")


def test_every_package_says_in_one_sentence_what_it_is_about():
    docstrings = {
        path.as_posix(): " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())
        for path, tree in modules().items()
        if path.name == "__init__.py" and not is_migration(path)
    }
    assert {path: text for path, text in docstrings.items() if not SENTENCE.fullmatch(text)} == {}


def without_docstring(path: Path, tree: ast.Module) -> Iterator[str]:
    """Public modules, classes, functions and methods of one file that have none.

    Left out: functions within functions, what is private or within something private, special methods, setters and
    overloads (whose first definition speaks for all).
    """
    if ast.get_docstring(tree) is None:
        yield f"{path}: the module"
    within: list[tuple[str, ast.Module | ast.ClassDef]] = [("", tree)]
    while within:
        prefix, scope = within.pop()
        for node in scope.body:
            if not isinstance(node, Definition) or node.name.startswith("_"):
                continue
            marks = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
            if ast.get_docstring(node) is None and not marks & {"setter", "overload"}:
                yield f"{path}:{node.lineno} {prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                within.append((f"{prefix}{node.name}.", node))


def test_what_is_public_has_a_docstring():
    missing = [
        name
        for path, tree in modules().items()
        if not is_migration(path) and not path.name.startswith("_")
        for name in without_docstring(path, tree)
    ]
    assert missing == []


#: First words that lean on the line above, which an editor does not show with the docstring.
LEANING = re.compile(
    r"(?:(?:The )?[Ss]ame|Of|As|Without|With what|Those|Either|Both|Neither|Its?|That|These|This|They|Them|Their|Such"
    r"|(?:One|Which|Some|None) of (?:these|those|them)|What else)\b"
)


def leaning(path: Path, tree: ast.Module, text: str) -> Iterator[str]:
    """Docstrings and `#:` comments of one file that begin with a word of `LEANING`, by line."""
    for node in ast.walk(tree):
        docstring = ast.get_docstring(node) if isinstance(node, ast.Module | Definition) else None
        if docstring and LEANING.match(docstring):
            yield f"{path}:{node.body[0].lineno} {docstring.splitlines()[0]}"
    above = ""
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if line.startswith("#: ") and not above.startswith("#:") and LEANING.match(line[3:]):
            yield f"{path}:{number} {line}"
        above = line


def test_docstrings_and_comments_on_fields_stand_alone():
    found = [
        line
        for path, tree in modules().items()
        if not is_migration(path)
        for line in leaning(path, tree, (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize("words", ["Of these, the ones that run.", "It rendered the clip.", "Those that still are."])
def test_a_docstring_or_comment_that_leans_would_be_seen(words: str) -> None:
    for text in (f'"""{words}"""\n', f'def f():\n    """{words}"""\n', f"class C:\n    #: {words}\n    a: int\n"):
        assert len(list(leaning(Path("a.py"), ast.parse(text), text))) == 1, text
    whole = '"""Items are kept. It is so."""\n#: Cards that are idle.\n#: It goes on in a second line.\na = 1\n'
    assert list(leaning(Path("a.py"), ast.parse(whole), whole)) == []


# -- the table "Guess the room" of docs/architecture.md -----------------------------------------------------------

HEADING = "## Guess the room"
CODE = re.compile(r"`([^`]+)`")


def guesses() -> list[tuple[str, str, str]]:
    """(question, file, symbol) of every row of the table below the heading in `docs/architecture.md`.

    The table has the columns *question*, *file* and *symbol*; file and symbol stand in backquotes. A file is a path
    below the root (a folder ends in `/`), a symbol a name that is defined in it: a class, a function, `Class.method`,
    a constant, or in a folder the name of one of its modules.
    """
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert HEADING in text, f"docs/architecture.md has no heading {HEADING!r}"
    section = text.partition(HEADING)[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    found = []
    # The first two are the head and the line under it.
    for row in rows[2:]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 3, f"a row has a question, a file and a symbol: {row}"
        file, symbol = CODE.fullmatch(cells[1]), CODE.fullmatch(cells[2])
        assert file, f"the file stands in backquotes: {row}"
        assert symbol, f"the symbol stands in backquotes: {row}"
        found.append((cells[0], file[1], symbol[1]))
    return found


def names_in(body: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """Names that statements define or take over, each with what is defined inside."""
    found: dict[str, list[ast.stmt]] = {}
    for node in body:
        if isinstance(node, Definition):
            found[node.name] = node.body
        elif isinstance(node, ast.Assign):
            found |= {target.id: [] for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = []
    return found


def defines(file: str, symbol: str) -> bool:
    """Whether the file (or folder) defines the symbol."""
    if file.endswith("/"):
        return (ROOT / file / f"{symbol}.py").is_file() or (ROOT / file / symbol / "__init__.py").is_file()
    body: list[ast.stmt] | None = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for name in symbol.split("."):
        body = names_in(body or []).get(name)
    return body is not None


def test_the_table_answers_the_questions_of_a_newcomer():
    questions = [question for question, _, _ in guesses()]
    assert len(questions) >= 15
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize(("question", "file", "symbol"), guesses(), ids=lambda value: str(value).replace(" ", "-"))
def test_what_a_newcomer_looks_for_is_there(question: str, file: str, symbol: str) -> None:
    assert (ROOT / file).exists(), f"{question}: {file} is not there"
    assert defines(file, symbol), f"{question}: {file} defines no {symbol}"


def test_a_wrong_guess_would_be_seen():
    assert defines("cluster/storage.py", "Storage.put_still")
    assert defines("cluster/store/", "schema")
    assert not defines("cluster/storage.py", "Storage.put_stills")
    assert not defines("cluster/storage.py", "put_still")
    assert not defines("cluster/store/", "schemata")


#: Files on each way through the code that `docs/architecture.md` describes, at most.
WAYS = {"One row's way": 25, "A pause's way": 12, "An out-of-memory's way": 12}


@pytest.mark.parametrize(("way", "most"), WAYS.items())
def test_a_way_through_the_code_is_short_and_its_files_are_there(way: str, most: int) -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {way}\n", 1)[1].split("\n## ", 1)[0]
    steps = "\n".join(re.findall(r"^\d\. .*(?:\n   .*)*", section, re.MULTILINE))
    files = list(dict.fromkeys(re.findall(r"`((?:pipeline|cluster|serve)/[\w/]+\.py)`", steps)))
    assert len(files) >= 8, "the section is read"
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert len(files) <= most
