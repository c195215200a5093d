"""What people ask of studies after their submission, beside pauses and cancels."""
