"""What a statement is given when it runs: lists, tables, and rows to run it for one after the other.

To build a statement takes longer than to run it, and so does an `IN` that is written anew for every number of values:
here a statement is made once, and its text is the same for any number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from cluster.store.database import insert_into


class _Texts(sa.types.TypeDecorator[Collection[str]]):
    """Texts in one parameter: an array, or JSON where the database has none."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(postgresql.ARRAY(sa.String()) if dialect.name == "postgresql" else sa.Text())

    def process_bind_param(self, value: Collection[str] | None, dialect: Dialect) -> Any:
        texts = list(value or ())
        return texts if dialect.name == "postgresql" else json.dumps(texts)


class _Among(FunctionElement[bool]):
    name = "among"
    type = sa.Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> Any:
        """Itself: SQLite would be asked whether it `= 1`, which no index answers."""
        return self


@compiles(_Among)
def _in_json(element: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, texts = (compiler.process(part, **options) for part in element.clauses)
    # As text: a value of no type is looked for in no index.
    return f"{column} IN (SELECT CAST(value AS TEXT) FROM json_each({texts}))"  # noqa: S608 (a column and a parameter)


@compiles(_Among, "postgresql")
def _any_of(element: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, texts = (compiler.process(part, **options) for part in element.clauses)
    return f"{column} = ANY ({texts})"


def among(column: sa.ColumnElement[Any], texts: str | Collection[str]) -> sa.ColumnElement[bool]:
    """Whether `column` is one of these texts, however many; of a name: of those in the parameter of that name."""
    if isinstance(texts, str):
        return _Among(column, sa.bindparam(texts, type_=_Texts()))
    return _Among(column, sa.bindparam(None, list(texts), type_=_Texts()))


def is_one_of(column: sa.ColumnElement[Any], *words: str) -> sa.ColumnElement[bool]:
    """Whether `column` is one of these words, written out: they are the same whenever the statement runs.

    A partial index is used only where the planner sees its condition in the statement, too.
    """
    return column.in_([sa.literal_column("'" + str(word).replace("'", "''") + "'") for word in words])


def unindexed(column: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    """The text of `column` as no index has it: for where another column finds the few rows that are meant.

    SQLite, which has no statistics here, would take an index of states before one of ids.
    """
    return column.op("||", return_type=sa.String())(sa.literal_column("''"))


@dataclass(frozen=True, kw_only=True)
class ParameterTable:
    """A table of texts and whole numbers to join with, in one parameter (SQLite) or one a column (PostgreSQL)."""

    name: str
    columns: Mapping[str, TypeEngine[Any]]

    def table(self, *, sqlite: bool) -> sa.FromClause:
        """The table in a statement that is executed with what `bound` gives."""
        if sqlite:
            given = sa.bindparam(f"{self.name}_rows", type_=sa.Text())
            each = sa.func.json_each(given).table_valued("value", name=f"{self.name}_each")
            cells = [
                sa.func.json_extract(each.c.value, sa.literal_column(f"'$[{n}]'"), type_=type_).label(column)
                for n, (column, type_) in enumerate(self.columns.items())
            ]
            return sa.select(*cells).subquery(self.name)
        arrays = [sa.bindparam(f"{self.name}_{n}", type_=postgresql.ARRAY(t)) for n, t in self.columns.items()]
        columns = [sa.column(column, type_) for column, type_ in self.columns.items()]
        return sa.func.unnest(*arrays).table_valued(*columns, name=self.name).render_derived()

    def bound(self, rows: Sequence[Sequence[Any]], *, sqlite: bool) -> dict[str, Any]:
        """The parameters that are these rows, in the order of the columns."""
        if sqlite:
            return {f"{self.name}_rows": json.dumps(rows)}
        return {f"{self.name}_{column}": [row[n] for row in rows] for n, column in enumerate(self.columns)}


class Keyed:
    """A table whose rows are found and put by its primary key, many at once; a key is any object with those names."""

    def __init__(self, table: sa.Table) -> None:
        self._table = table
        self.names = tuple(column.name for column in table.primary_key)
        self._wanted = ParameterTable(name="wanted", columns={column.name: column.type for column in table.primary_key})
        self._statements: dict[bool, tuple[sa.Select[Any], Any]] = {}

    def find(self, c: Connection, keys: Collection[Any], *, sqlite: bool) -> Sequence[sa.Row[Any]]:
        """The rows of those keys that are there."""
        rows = [tuple(self.values(key).values()) for key in keys]
        return c.execute(self._made(sqlite)[0], self._wanted.bound(rows, sqlite=sqlite)).all()

    def put(self, c: Connection, rows: Sequence[Mapping[str, Any]], *, sqlite: bool) -> None:
        """Write whole rows, over those of their keys that are there."""
        if rows:
            c.execute(self._made(sqlite)[1], rows)

    def values(self, key: Any) -> dict[str, Any]:
        """The columns of a key, in their order; a member of an enumeration is stored as the text that it is."""
        found = {name: getattr(key, name) for name in self.names}
        return {name: str(value) if isinstance(value, str) else value for name, value in found.items()}

    def _made(self, sqlite: bool) -> tuple[sa.Select[Any], Any]:
        if sqlite not in self._statements:
            table, wanted = self._table, self._wanted.table(sqlite=sqlite)
            same = sa.and_(*(column == wanted.c[column.name] for column in table.primary_key))
            insert = insert_into(table, sqlite=sqlite)
            changing = {c.name: insert.excluded[c.name] for c in table.columns if not c.primary_key}
            self._statements[sqlite] = (
                sa.select(table).join(wanted, same),
                insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=changing),
            )
        return self._statements[sqlite]


def for_each(connection: Connection, statement: sa.Update | sa.Insert, rows: Sequence[Mapping[str, Any]]) -> None:
    """Run `statement` for each of `rows`, which have the same names all, in one call of the driver.

    As `connection.execute(statement, rows)`, which looks every value of every row up in the statement, and takes longer
    for that than the database for the rows. Columns get no defaults of their own.
    """
    if rows:
        text, prepare = _prepared(statement, connection.dialect, tuple(rows[0]))
        connection.exec_driver_sql(text, list(map(prepare, rows)))


@lru_cache(maxsize=256)
def _prepared(
    statement: sa.Update | sa.Insert, dialect: Dialect, names: tuple[str, ...]
) -> tuple[str, Callable[[Mapping[str, Any]], Any]]:
    """The text of `statement`, and what makes of a row what the driver takes."""
    compiled = statement.compile(dialect=dialect, column_keys=list(names))
    assert isinstance(compiled, SQLCompiler)
    made: dict[str, Callable[[Any], Any]] = {}
    # Not `binds`, where a value of the statement's own has a second name that no row of parameters has.
    for parameter, name in compiled.bind_names.items():
        if (process := parameter.type.dialect_impl(dialect).bind_processor(dialect)) is not None:
            made[name] = process
    #: Values that are the statement's own.
    fixed = {name: value for name, value in compiled.params.items() if name not in names}
    for name in fixed.keys() & made.keys():
        fixed[name] = made.pop(name)(fixed[name])

    def full(row: Mapping[str, Any]) -> Mapping[str, Any]:
        values = {**fixed, **row}
        for name, process in made.items():
            values[name] = process(values[name])
        return values

    order = compiled.positiontup
    if order is None:
        return str(compiled), full
    # With one name it would give the value itself.
    assert len(order) > 1
    in_order = itemgetter(*order)
    if not fixed and not made:
        return str(compiled), in_order
    return str(compiled), lambda row: in_order(full(row))
