"""Property tests run on busy machines: a slow example is no failure."""

from hypothesis import HealthCheck, settings

settings.register_profile("isentrope", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("isentrope")
