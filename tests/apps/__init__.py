"""Programs that tests run with the interpreter of a rendered service, whose package is `my_service`."""
