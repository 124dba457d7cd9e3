from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BindVariable(_message.Message):
    __slots__ = ("type", "value")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    type: int
    value: bytes
    def __init__(self, type: _Optional[int] = ..., value: _Optional[bytes] = ...) -> None: ...

class BoundQuery(_message.Message):
    __slots__ = ("sql", "bind_variables")
    class BindVariablesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: BindVariable
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[BindVariable, _Mapping]] = ...) -> None: ...
    SQL_FIELD_NUMBER: _ClassVar[int]
    BIND_VARIABLES_FIELD_NUMBER: _ClassVar[int]
    sql: str
    bind_variables: _containers.MessageMap[str, BindVariable]
    def __init__(self, sql: _Optional[str] = ..., bind_variables: _Optional[_Mapping[str, BindVariable]] = ...) -> None: ...

class ExecuteOptions(_message.Message):
    __slots__ = ("included_fields", "client_found_rows")
    INCLUDED_FIELDS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FOUND_ROWS_FIELD_NUMBER: _ClassVar[int]
    included_fields: int
    client_found_rows: bool
    def __init__(self, included_fields: _Optional[int] = ..., client_found_rows: bool = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("in_transaction", "autocommit", "target_string", "options", "enable_system_settings")
    IN_TRANSACTION_FIELD_NUMBER: _ClassVar[int]
    AUTOCOMMIT_FIELD_NUMBER: _ClassVar[int]
    TARGET_STRING_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ENABLE_SYSTEM_SETTINGS_FIELD_NUMBER: _ClassVar[int]
    in_transaction: bool
    autocommit: bool
    target_string: str
    options: ExecuteOptions
    enable_system_settings: bool
    def __init__(self, in_transaction: bool = ..., autocommit: bool = ..., target_string: _Optional[str] = ..., options: _Optional[_Union[ExecuteOptions, _Mapping]] = ..., enable_system_settings: bool = ...) -> None: ...

class ExecuteRequest(_message.Message):
    __slots__ = ("session", "query")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    session: Session
    query: BoundQuery
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., query: _Optional[_Union[BoundQuery, _Mapping]] = ...) -> None: ...

class StreamExecuteRequest(_message.Message):
    __slots__ = ("query", "session")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    query: BoundQuery
    session: Session
    def __init__(self, query: _Optional[_Union[BoundQuery, _Mapping]] = ..., session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class Field(_message.Message):
    __slots__ = ("name", "type", "charset")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CHARSET_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: int
    charset: int
    def __init__(self, name: _Optional[str] = ..., type: _Optional[int] = ..., charset: _Optional[int] = ...) -> None: ...

class Row(_message.Message):
    __slots__ = ("lengths", "values")
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    values: bytes
    def __init__(self, lengths: _Optional[_Iterable[int]] = ..., values: _Optional[bytes] = ...) -> None: ...

class QueryResult(_message.Message):
    __slots__ = ("fields", "rows_affected", "insert_id", "rows")
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    ROWS_AFFECTED_FIELD_NUMBER: _ClassVar[int]
    INSERT_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    fields: _containers.RepeatedCompositeFieldContainer[Field]
    rows_affected: int
    insert_id: int
    rows: _containers.RepeatedCompositeFieldContainer[Row]
    def __init__(self, fields: _Optional[_Iterable[_Union[Field, _Mapping]]] = ..., rows_affected: _Optional[int] = ..., insert_id: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[Row, _Mapping]]] = ...) -> None: ...

class RPCError(_message.Message):
    __slots__ = ("message", "code")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    message: str
    code: int
    def __init__(self, message: _Optional[str] = ..., code: _Optional[int] = ...) -> None: ...

class ExecuteResponse(_message.Message):
    __slots__ = ("error", "session", "result")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    error: RPCError
    session: Session
    result: QueryResult
    def __init__(self, error: _Optional[_Union[RPCError, _Mapping]] = ..., session: _Optional[_Union[Session, _Mapping]] = ..., result: _Optional[_Union[QueryResult, _Mapping]] = ...) -> None: ...

class StreamExecuteResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: QueryResult
    def __init__(self, result: _Optional[_Union[QueryResult, _Mapping]] = ...) -> None: ...
