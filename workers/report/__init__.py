"""What a plan says about data and model: read beside the API, without a worker."""
