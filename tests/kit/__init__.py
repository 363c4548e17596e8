"""What the tests have in common: rendered projects, running services, load, the engine, balancers, tools."""
