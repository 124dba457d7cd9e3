"""Queues in ``sqladmin``, an admin in the browser for SQLAlchemy models.

.. code-block:: python

    admin = Admin(app, engine, authentication_backend=...)
    add_queues(admin, Base)

Every queue gets a list, a page for each message, and actions for many messages at once; an
overview shows the state of each queue. To change a queue's pages, add a view of your own before::

    class MailAdmin(QueueAdmin, model=Mail):
        column_list = ["id", "state", "address"]

    admin.add_view(MailAdmin)
"""

from ...extras import needs_extra

with needs_extra("admin", "sqladmin"):
    from .mounting import add_queues
    from .views import QueueAdmin

__all__ = ["QueueAdmin", "add_queues"]
