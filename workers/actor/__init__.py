"""The process of a worker: whose it is, what it has said, and how Ray runs it."""
