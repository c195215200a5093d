"""Logging in at an OpenID Connect provider. Off unless `NIGHTSWEEP_OPENID_ISSUER` is set."""
