"""Pages: an overview of the service, and reports of studies and schedules, also as files."""
