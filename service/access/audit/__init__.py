"""Reading the audit log. It is written by `service.rest.authorization.audit`."""
