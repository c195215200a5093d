"""Reading data and model for a plan or a check, in processes of their own."""
