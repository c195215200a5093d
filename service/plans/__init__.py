"""Plans of studies, and the checks of data and model before a submission is accepted."""
