"""The fields of forms: which values have one, how it shows them, and what a user has changed."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

from sqladmin.exceptions import NoConverterFound
from sqladmin.fields import IntervalField, JSONField
from sqladmin.forms import WTFORMS_ATTRS, ModelConverter
from sqladmin.helpers import parse_interval
from sqlalchemy import TypeDecorator
from sqlalchemy.orm import ColumnProperty
from starlette.datastructures import MultiDict
from wtforms import BooleanField, Field, FloatField, Form
from wtforms.widgets import Input

from ...texts import encodable

__all__ = ["FormConverter", "changed"]

_LINE_END = re.compile(r"\r\n?|\n")


def changed(data: dict[str, Any], shown: Form, posted: Form) -> dict[str, Any]:
    """Return the values that a user has changed, of those that a form has posted.

    A form shows many a value only roughly, such as a time without its microseconds. What is posted
    as it was shown, isn't to be saved.

    :param data: the values by their attributes.
    """

    def is_changed(name: str) -> bool:
        field = WTFORMS_ATTRS.get(name, name)
        # By their texts, as True is equal to 1.
        return repr(_untouched(shown[field])) != repr(posted[field].data)

    return {name: value for name, value in data.items() if is_changed(name)}


def _untouched(field: Field) -> Any:
    """Return the value that a browser posts of a field that shows another one."""
    show = getattr(field, "_value", None)
    text = None if show is None or isinstance(field, BooleanField) else show()
    if isinstance(text, str):  # Otherwise it is chosen, and not written.
        # HTML has one end of a line in areas of text, and none in an input.
        sent = _LINE_END.sub("" if isinstance(field.widget, Input) else "\r\n", text)
        field.process(MultiDict({field.name: sent}))
    return field.data


class FormConverter(ModelConverter):
    """Makes the field of a column; none for values that can't be written as text.

    Those are bytes, pickled objects, values that a type of the user's own makes of what is stored,
    and values that the database computes.
    """

    def __init__(self) -> None:
        super().__init__()
        ours: dict[str, Any] = {
            "Text": self._make_area,
            "Float": _make_float,  # From SQLAlchemy 2.1 on, sqladmin has nothing for it.
            "JSON": _make_json,
            "Interval": _make_interval,
            "LargeBinary": _make_none,
        }
        self._converters = self._converters | ours

    def get_converter(self, prop: Any) -> Any:
        """Return the function that makes the field."""
        if isinstance(prop, ColumnProperty) and not self._is_writable(prop):
            return _make_none
        try:
            return super().get_converter(prop)
        except NoConverterFound:
            return _make_none

    def _is_writable(self, prop: ColumnProperty[Any]) -> bool:
        [column] = prop.columns
        if column.computed is not None:
            return False
        type_ = type(column.type)
        if any(f"{base.__module__}.{base.__name__}" in self._converters for base in type_.__mro__):
            return True  # sqladmin knows this very type.
        return (
            not issubclass(type_, TypeDecorator)
            or type_.process_result_value is TypeDecorator.process_result_value
        )

    def _make_area(self, kwargs: dict[str, Any], **column: Any) -> Any:
        kwargs["filters"].append(lambda text: text and _LINE_END.sub("\n", text))
        return self.conv_text(kwargs=kwargs, **column)


def _make_none(**_: Any) -> None:
    """Return no field."""


def _make_float(kwargs: dict[str, Any], **_: Any) -> FloatField:
    return FloatField(**kwargs)


def _make_json(kwargs: dict[str, Any], **_: Any) -> JSONField:
    if kwargs["default"] is None:
        kwargs["default"] = {}
    return _JsonField(**kwargs)


def _make_interval(kwargs: dict[str, Any], **_: Any) -> IntervalField:
    kwargs["render_kw"]["placeholder"] = "Like: 1 day 1:25:33.652"
    return _IntervalField(**kwargs)


class _JsonField(JSONField):
    """Shows every value of JSON. sqladmin's shows ``{}`` for those that are false in Python."""

    def _value(self) -> str:
        if self.raw_data:
            return str(self.raw_data[0])
        return encodable(json.dumps(self.data, ensure_ascii=False))


class _IntervalField(IntervalField):
    """Accepts a length of 0, too."""

    def process_formdata(self, valuelist: list[str]) -> None:
        if valuelist and parse_interval(valuelist[0]) == timedelta():
            self.data = timedelta()
        else:
            super().process_formdata(valuelist)
