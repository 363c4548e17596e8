"""Programs for services with tracing and http_client; they are typed in such a service (test_tracing)."""
